"""``python -m ladderkern demo``: SPAM through gradient spikes, the joint loss, PRM step scores, ladder wiring."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import webbrowser
from pathlib import Path

from ..runtime.machine import cores
from .demo_parts import PARTS, missing, run_parts
from .demo_report import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--quick", action="store_true", help="fewer steps: shows how it works, compares little")
    parser.add_argument("--part", choices=PARTS, help="run one part of the four")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order, spikes and masks (default 0)")
    parser.add_argument(
        "--jobs", type=int, default=cores(), help="training runs at a time, each on one core (default: all cores)"
    )
    parser.add_argument("--open", action="store_true", help="show the report in the browser at the end")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default demo)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 when something it needs is not installed."""
    parts = PARTS if arguments.part is None else (arguments.part,)
    lacking = missing(parts)
    if lacking:
        wanted = " ".join(f"'{name}'" if "[" in name else name for name in lacking)
        print(f"The demo needs {' and '.join(lacking)}: pip install {wanted}", file=sys.stderr)
        return 1
    if {"spam", "ladder"} & set(parts) and importlib.util.find_spec("pydoc_data") is None:
        print("The demo trains on pydoc_data.topics, which this Python was built without.", file=sys.stderr)
        return 1
    path = run_parts(parts, Options(arguments.quick, arguments.seed, arguments.output, arguments.jobs))
    if arguments.open:
        webbrowser.open(path.absolute().as_uri())
    return 0
