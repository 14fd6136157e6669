"""``python -m ladderkern demo``: SPAM through gradient spikes, the joint loss, PRM step scores, ladder wiring."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

PARTS = ("spam", "images", "prm", "ladder")
_NEEDED = ("transformers", "matplotlib", "tqdm")  # by what trains; the PRM part only draws
_NEEDED_BY_IMAGES = ("gymnasium", "pygame")  # of one extra: gymnasium[toy-text]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--quick", action="store_true", help="fewer steps: shows how it works, compares little")
    parser.add_argument("--only", choices=PARTS, help="run one part of the four")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order, spikes and masks (default 0)")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default demo)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 when something it needs is not installed."""
    parts = PARTS if arguments.only is None else (arguments.only,)
    needed = ("matplotlib",) if parts == ("prm",) else _NEEDED
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if "images" in parts and any(importlib.util.find_spec(name) is None for name in _NEEDED_BY_IMAGES):
        missing.append("gymnasium[toy-text]")
    if missing:
        wanted = " ".join(f"'{name}'" if "[" in name else name for name in missing)
        print(f"The demo needs {' and '.join(missing)}: pip install {wanted}", file=sys.stderr)
        return 1
    if {"spam", "ladder"} & set(parts) and importlib.util.find_spec("pydoc_data") is None:
        print("The demo trains on pydoc_data.topics, which this Python was built without.", file=sys.stderr)
        return 1
    for i, part in enumerate(parts):
        print(end="\n\n" if i else "")
        importlib.import_module(f".demo_{part}", __package__).run(arguments)
    return 0
