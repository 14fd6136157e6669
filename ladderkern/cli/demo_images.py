"""The images part of ``python -m ladderkern demo``: MVoT's joint loss against cross-entropy alone, on image tokens."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from . import demo_images_report as report
from .demo_frozen_lake import FULL, GRID, QUICK, TOKENS, Plan
from .demo_images_training import LOSSES, build_model, train
from .demo_report import progress_bar
from .demo_training import one_thread


@one_thread()
def run(arguments: argparse.Namespace) -> None:
    """Train with both losses, print the table, write ``images.csv`` and ``images.png``."""
    start = time.perf_counter()
    setting = dataclasses.replace(QUICK if arguments.quick else FULL, seed=arguments.seed)
    print("FrozenLake boards as image tokens: predict the picture after a move.\n", flush=True)
    plan = Plan.draw(setting, progress_bar("rendering boards", unit="picture"))
    print(introduction(plan, arguments.output), flush=True)
    runs = [train(name, plan, progress=progress_bar(name)) for name in LOSSES]
    arguments.output.mkdir(parents=True, exist_ok=True)
    csv, png = arguments.output / "images.csv", arguments.output / "images.png"
    report.write_csv(runs, plan, csv)
    report.write_pictures(runs, plan, png)
    print(f"\n{report.table(runs)}\n\n{report.reading_guide(plan, quick=arguments.quick)}")
    print(f"\nWritten: {csv}, {png}  ({time.perf_counter() - start:.0f} s in all)")


def introduction(plan: Plan, output: Path) -> str:
    """What is being done and what to look at, before training starts."""
    setting, codes = plan.setting, len(plan.codebook.codes)
    count = sum(p.numel() for p in build_model(setting, codes).parameters())
    return "\n".join(
        (
            "",
            f"Training one {count / 1e6:.2f} M-parameter Llama with each of two losses. At the end look at the table and at "
            f"{output / 'images.png'}.",
            "",
            f"  pictures  {plan.num_pictures} rendered by gymnasium, random 4x4 maps; {setting.held_out_boards} of "
            f"{setting.boards + setting.held_out_boards} boards are held out",
            f"  tokens    {GRID} x {GRID} = {TOKENS} a picture, from {codes} k-means codes of the training boards' patches; "
            f"decoding errs",
            f"            by {plan.codebook_error:.1f} of 255 (RMS, held-out pictures)",
            f"  sequence  {TOKENS} tokens before, a move, {TOKENS} tokens after; the loss is on the last {TOKENS}",
            f"  training  {setting.steps} steps of {setting.batch} of {len(plan.train.move)} moves, seed {setting.seed}, "
            f"AdamW at {setting.lr:g}; the same first weights and data for both",
            f"  joint     cross-entropy + {setting.weight:g} x token discrepancy (cross_entropy_with_discrepancy)",
            "",
        )
    )
