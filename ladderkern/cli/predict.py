"""``python -m ladderkern predict``: what a ladder would gain on your model and link, before you train one."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..ladder.advice import WORTH, advice
from ..ladder.hardware import DEVICES, LINKS, AlphaBeta, Device
from ..ladder.predictor import Prediction, predict
from ..ladder.shapes import MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    models = f"{', '.join(MODELS)}, or a folder with a config.json (default llama-3-70b)"
    parser.add_argument("--model", default="llama-3-70b", metavar="NAME", help=models)
    parser.add_argument("--tp", type=int, default=8, metavar="N", help="ranks that share each layer (default 8)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default 1)")
    parser.add_argument("--prompt", type=int, default=1024, metavar="N", help="tokens of each prompt (default 1024)")
    parser.add_argument("--new-tokens", type=int, default=512, metavar="N", help="of each sequence (default 512)")
    parser.add_argument("--link", choices=tuple(LINKS), help="between the ranks (default nvlink)")
    given = "instead of --link: an all-reduce of S bytes takes US microseconds + S / (GB gigabytes a second)"
    parser.add_argument("--all-reduce", type=float, nargs=2, metavar=("US", "GB"), help=given)
    device = "instead of the H100's fitted numbers: terabytes and teraFLOP a second that your device reaches"
    parser.add_argument("--device", type=float, nargs=2, metavar=("TB", "TFLOP"), help=device)
    last = "ladder layers of the hybrid, the last N (default: half)"
    parser.add_argument("--ladder-layers", type=int, metavar="N", help=last)
    worth = f"the speed-up that would be worth retraining for (default {WORTH:g})"
    parser.add_argument("--worth", type=float, default=WORTH, metavar="X", help=worth)
    plot = "where to draw speed-up against link speed (default predict.png; needs matplotlib)"
    parser.add_argument("--plot", type=Path, default=Path("predict.png"), metavar="PATH", help=plot)
    parser.add_argument("--no-plot", action="store_true", help="draw nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 for a setting that cannot be, or where matplotlib is missing."""
    drawn = not arguments.no_plot and arguments.tp > 1
    if drawn and importlib.util.find_spec("matplotlib") is None:
        print("The plot needs matplotlib: pip install matplotlib, or --no-plot", file=sys.stderr)
        return 1
    try:
        prediction = prediction_of(arguments)
        print(f"{prediction.to_text()}\n\n{advice(prediction, arguments.worth)}")
        if drawn:
            from .predict_plot import write_plot

            arguments.plot.parent.mkdir(parents=True, exist_ok=True)
            write_plot(prediction, arguments.worth, arguments.plot)
            print(f"\nWritten: {arguments.plot}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def prediction_of(arguments: argparse.Namespace) -> Prediction:
    """The prediction of the command's arguments. Raises ValueError for a setting that cannot be."""
    if arguments.link and arguments.all_reduce:
        raise ValueError("--link and --all-reduce must not both be given")
    link: Any = arguments.link
    if arguments.all_reduce:
        microseconds, gigabytes = arguments.all_reduce
        if microseconds < 0 or gigabytes <= 0:
            what = f"got {microseconds:g} and {gigabytes:g}"
            raise ValueError(f"--all-reduce must be a time of at least 0 and a bandwidth above 0, {what}")
        link = AlphaBeta(microseconds * 1e-6, gigabytes * 1e9)
    return predict(
        arguments.model,
        arguments.tp,
        arguments.batch,
        link=link,
        device=given_device(*arguments.device) if arguments.device else "h100",
        prompt=arguments.prompt,
        new_tokens=arguments.new_tokens,
        ladder_layers=arguments.ladder_layers,
    )


def given_device(terabytes: float, teraflop: float) -> Device:
    """A device of which two numbers are known; the others are the H100's. Raises ValueError unless both are above 0."""
    if min(terabytes, teraflop) <= 0:
        raise ValueError(f"--device must be two numbers above 0, got {terabytes:g} and {teraflop:g}")
    return DEVICES["h100"]._replace(
        title=f"given: {terabytes:g} TB/s, {teraflop:g} TFLOP/s",
        vector_bandwidth=terabytes * 1e12,
        matrix_bandwidth=terabytes * 1e12,
        matmul_rate=teraflop * 1e12,
        basis="given; the overhead of a layer and the traffic of the cache are fits to published runs on H100",
    )
