"""The command line: ``python -m ladderkern {info,demo}``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ladderkern", description="Fused kernels, checked and at work.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, backends and their status")
    from . import demo

    what = "train small models: SPAM against AdamW, the joint loss against cross-entropy"
    demo.add_arguments(commands.add_parser("demo", help=what))
    arguments = parser.parse_args(argv)
    if arguments.command == "demo":
        return demo.run(arguments)
    from ..runtime.info import info

    for name, value in info().items():
        print(f"{name:>14}  {value}")
    return 0
