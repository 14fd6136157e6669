"""``python -m ladderkern demo``: what gradient spikes do to AdamW, and what SPAM does about them; then the other parts."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .demo_training import Plan, Run

# The best learning rate of each optimizer: the least held-out loss in bench/results/demo_sweep.csv, which
# bench/sweep_demo.py wrote (one grid for all, another seed than the demo's).
BEST_LR = {
    "AdamW": 2e-3,
    "AdamW, clip norm 1": 1e-3,
    "SPAM": 5e-4,
    "SPAM, 1/4 by element": 8e-3,
    "SPAM, 1/4 by row": 4e-3,
}
YARDSTICK = "AdamW, no spikes"
PARTS = ("spam", "images", "prm")
_NEEDED = ("transformers", "matplotlib", "tqdm")  # by what trains; the PRM part only draws
_NEEDED_BY_IMAGES = ("gymnasium", "pygame")  # of one extra: gymnasium[toy-text]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--quick", action="store_true", help="fewer steps: shows how it works, compares little")
    parser.add_argument("--only", choices=PARTS, help="run one part of the three")
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
    if "spam" in parts and importlib.util.find_spec("pydoc_data") is None:
        print("The demo trains on pydoc_data.topics, which this Python was built without.", file=sys.stderr)
        return 1
    if "spam" in parts:
        run_spam(arguments)
    if "images" in parts:
        from . import demo_images

        print(end="\n\n" if len(parts) > 1 else "")
        demo_images.run(arguments)
    if "prm" in parts:
        from . import demo_prm

        print(end="\n\n" if len(parts) > 1 else "")
        demo_prm.run(arguments)
    return 0


def run_spam(arguments: argparse.Namespace) -> None:
    """The first part: train with every optimizer, print the table, write ``spam.csv`` and ``spam.png``."""
    from . import demo_report as report
    from .demo_training import FULL, QUICK, Plan

    start = time.perf_counter()
    setting = dataclasses.replace(QUICK if arguments.quick else FULL, seed=arguments.seed)
    plan = Plan.draw(setting)
    print(introduction(plan, arguments.output), flush=True)
    runs = train_all(plan)
    arguments.output.mkdir(parents=True, exist_ok=True)
    report.write_csv(runs, plan, arguments.output / "spam.csv")
    report.write_plot(runs, plan, arguments.output / "spam.png")
    print(f"\n{report.table(runs)}\n\n{report.reading_guide(runs, plan, quick=arguments.quick)}")
    print(f"\nWritten: {arguments.output / 'spam.csv'}, {arguments.output / 'spam.png'}  ", end="")
    print(f"({time.perf_counter() - start:.0f} s in all)")


def introduction(plan: Plan, output: Path) -> str:
    """What is being done and what to look at, before it starts."""
    from .demo_training import build_model

    setting = plan.setting
    count = sum(p.numel() for p in build_model(setting).parameters())
    python = platform.python_version()
    return "\n".join(
        (
            f"Training one {count / 1e6:.1f} M-parameter byte-level Llama with each of {len(BEST_LR)} optimizers while its",
            f"gradients spike. At the end look at the table and at {output / 'spam.png'}.",
            "",
            f"  text      {plan.text.num_bytes:,} bytes of English, the help texts of Python {python} (pydoc_data.topics);",
            f"            the last {len(plan.text.held_out):,} bytes are held out",
            f"  training  {setting.steps} steps of {setting.batch} x {setting.length} bytes, seed {setting.seed}; the same "
            "first weights, data and spikes for all",
            f"  spikes    at {len(plan.spiking)} random steps; {setting.spike_share:.0%} of the coordinates of each gradient, "
            f"drawn at random, times {setting.spike_factor:g}",
            f"  SPAM      resets every {setting.reset_interval} steps, warms up again for {setting.warmup_steps}, clips "
            f"from step {setting.unclipped_steps} of a cycle on",
            "            (published: 500, 150 and 20; scaled to this short run)",
            "  lr        for each optimizer its best in bench/results/demo_sweep.csv, one grid for all",
            "",
        )
    )


def train_all(plan: Plan) -> list[Run]:
    """One run an optimizer, after one of AdamW without spikes as a yardstick."""
    from tqdm import tqdm

    from .demo_training import train

    runs = []
    for title in (YARDSTICK, *BEST_LR):
        name = "AdamW" if title == YARDSTICK else title

        progress = functools.partial(tqdm, desc=f"{title:22}", unit="step", mininterval=0.5)
        result = train(name, BEST_LR[name], plan, spikes=title != YARDSTICK, progress=progress)
        result.name = title
        runs.append(result)
    return runs
