"""The command line: ``python -m ladderkern {info,demo,prm,predict}``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ladderkern", description="Fused kernels, checked and at work.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, backends and their status")
    from . import demo, predict, prm_report

    what = "train small models: SPAM against AdamW, the joint loss against cross-entropy, ladder against standard wiring; "
    what += "score a PRM's public step scores"
    demo.add_arguments(commands.add_parser("demo", help=what))
    prm = commands.add_parser("prm", help="process reward models").add_subparsers(dest="prm_command", required=True)
    what = "Best-of-N under every strategy, where the least score falls, and ProcessBench, of a file of step scores"
    prm_report.add_arguments(prm.add_parser("report", help=what, description=f"Print {what}."))
    what = "how much faster a ladder, a hybrid or a parallel block would decode on your model and link"
    predict.add_arguments(commands.add_parser("predict", help=what, description=f"Predict {what}."))
    arguments = parser.parse_args(argv)
    if arguments.command == "demo":
        return demo.run(arguments)
    if arguments.command == "predict":
        return predict.run(arguments)
    if arguments.command == "prm":
        return prm_report.run(arguments)
    from ..runtime.info import info

    for name, value in info().items():
        print(f"{name:>14}  {value}")
    return 0
