"""The optimizer part of ``python -m ladderkern demo``: what gradient spikes do to AdamW, and what SPAM does about them."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from . import demo_report as report
from . import demo_training
from .demo_training import Plan, Run, build_model, one_thread, train

# The best learning rate of each optimizer: the least held-out loss in bench/results/demo_sweep.csv, which
# bench/sweep_demo.py wrote (one grid for all, another seed than the demo's).
BEST_LR = {
    "AdamW": 2e-3,
    "AdamW, clip norm 1": 2e-3,
    "SPAM": 2e-3,
    "SPAM, 1/4 by element": 8e-3,
    "SPAM, 1/4 by row": 4e-3,
}
YARDSTICK = "AdamW, no spikes"


@one_thread()
def run(arguments: argparse.Namespace) -> None:
    """Train with every optimizer, print the table, write ``spam.csv`` and ``spam.png``."""
    start = time.perf_counter()
    setting = dataclasses.replace(demo_training.QUICK if arguments.quick else demo_training.FULL, seed=arguments.seed)
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
    setting = plan.setting
    count = sum(p.numel() for p in build_model(setting).parameters())
    return "\n".join(
        (
            f"Training one {count / 1e6:.1f} M-parameter byte-level ladder Llama with each of {len(BEST_LR)} optimizers while",
            f"its gradients spike. At the end look at the table and at {output / 'spam.png'}.",
            "",
            report.describe_training(plan, "first weights, data and spikes"),
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
    runs = []
    for title in (YARDSTICK, *BEST_LR):
        name = "AdamW" if title == YARDSTICK else title
        result = train(name, BEST_LR[name], plan, spikes=title != YARDSTICK, progress=report.progress_bar(title))
        result.name = title
        runs.append(result)
    return runs
