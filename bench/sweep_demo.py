"""Which learning rate suits each optimizer of ``python -m ladderkern demo``: one grid for all of them.

    python bench/sweep_demo.py                   # about half an hour on one core

Each row of ``bench/results/demo_sweep.csv`` is one training run: the demo's full setting, with a seed that is not the
demo's. Rows already there are kept, so that an interrupted sweep goes on where it stopped. The demo's ``BEST_LR`` holds
the best of each optimizer; ``tests/cli/test_demo.py`` compares the two.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import ladderkern
from ladderkern.cli.demo_training import CONTENDERS, FULL, Plan, train

GRID = (2e-3, 1e-3, 4e-3, 8e-3, 5e-4, 1.6e-2, 2.5e-4)  # the middle first; widened until no best one lay at an end
SEED = 1
RESULTS = Path(__file__).parent / "results" / "demo_sweep.csv"


def machine() -> str:
    """The processor and its number of cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"


def one_run(name: str, lr: float, plan: Plan, threads: int) -> dict[str, Any]:
    """Train once; the row of the table."""
    start = time.perf_counter()
    run = train(name, lr, plan)
    return {
        "optimizer": name,
        "lr": lr,
        "held_out_loss": f"{run.held_out:.4f}",
        "train_loss": f"{sum(run.losses[-20:]) / len(run.losses[-20:]):.4f}",
        "seconds": f"{time.perf_counter() - start:.0f}",
        "seed": plan.setting.seed,
        "threads": threads,
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ladderkern": ladderkern.__version__,
        "text_bytes": plan.text.num_bytes,
        "setting": plan.setting.describe(),
    }


def main() -> None:
    """Run what is missing from the grid."""
    parser = argparse.ArgumentParser(description="Sweep the learning rates of the demo's optimizers.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plan = Plan.draw(dataclasses.replace(FULL, seed=SEED))
    done: set[tuple[str, float]] = set()
    if arguments.output.exists():
        with arguments.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if any(row["setting"] != plan.setting.describe() or int(row["seed"]) != SEED for row in rows):
            parser.error(f"{arguments.output} was made with another setting; move it away first")
        done = {(row["optimizer"], float(row["lr"])) for row in rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for lr in GRID:
        for name in CONTENDERS:
            if (name, lr) in done:
                continue
            row = one_run(name, lr, plan, arguments.threads)
            new = not arguments.output.exists()
            with arguments.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(f"{name:22}  lr {lr:<7g}  held-out loss {row['held_out_loss']}  ({row['seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
