"""What the demo's parts share in print and on disk, and the optimizer part's table, guide to reading it, and plot."""

from __future__ import annotations

import csv
import functools
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..runtime.backend import explain
from ..runtime.text import text_table
from .demo_training import BETAS, Plan, Run

COLOURS = ("#888888", "#d62728", "#ff9f1c", "#1f4fd8", "#2a9d5c", "#8e44ad")
_HEADER = ("optimizer", "held-out loss", "lr", "optimizer step", "optimizer state")


def progress_bar(title: str, unit: str = "step") -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A wrapper of what is iterated over that shows how far it is."""
    from tqdm import tqdm

    return functools.partial(tqdm, desc=f"{title:22}", unit=unit, mininterval=0.5)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows with the same keys as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def software() -> dict[str, Any]:
    """What a run depends on beside its plan, as columns of a CSV file."""
    return {"threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}


def conditions(plan: Plan) -> dict[str, Any]:
    """What is needed to repeat the runs of a plan, as columns of a CSV file."""
    return {
        "seed": plan.setting.seed,
        **software(),
        "text_bytes": plan.text.num_bytes,
        "setting": plan.setting.describe(),
    }


def describe_training(plan: Plan, shared: str) -> str:
    """Lines of an introduction: the text, and the training that all runs have in common, ``shared`` included."""
    setting = plan.setting
    return "\n".join(
        (
            f"  text      {plan.text.num_bytes:,} bytes of English, the help texts of Python {platform.python_version()} "
            "(pydoc_data.topics);",
            f"            the last {len(plan.text.held_out):,} bytes are held out",
            f"  training  {setting.steps} steps of {setting.batch} x {setting.length} bytes, seed {setting.seed}; the same "
            f"{shared} for all",
        )
    )


def guide(lines: Sequence[str], quick: bool, stops: str) -> str:
    """Lines to read a table by; after a quick run also where it stops and what that means."""
    return "\n".join([*lines, f"--quick stops {stops}"] if quick else lines)


def table(runs: list[Run]) -> str:
    """The results, one run a line."""
    rows = [
        (run.name, f"{run.held_out:.4f}", f"{run.lr:g}", f"{run.optimizer_ms:.2f} ms", f"{run.state_bytes:,} bytes")
        for run in runs
    ]
    return text_table(_HEADER, rows)


def reading_guide(runs: list[Run], plan: Plan, *, quick: bool) -> str:
    """What the columns mean, what the numbers are good for, and which backend SPAM ran on."""
    yardstick, spiked = runs[0], runs[1:]
    best = min(spiked, key=lambda run: run.held_out)
    setting = plan.setting
    cost = spiked[0].held_out - yardstick.held_out
    lines = [
        f"Held-out loss in nats a byte: less is better. The spikes cost AdamW {cost:+.4f}; best under spikes: {best.name}.",
        f"This is one seed ({setting.seed}): run again with --seed N to see how much is chance.",
        f"All: betas {BETAS}, no weight decay, lr warm-up of {setting.lr_warmup} steps, then cosine to 10 %.",
        "AdamW: torch's fused one, eps 1e-8. SPAM: eps 1e-6 and threshold 5000, as published.",
        f"Optimizer step: median of the run, clipping included, on one thread; {explain('spam_step_', torch.empty(1))}.",
    ]
    return guide(lines, quick, "early, at learning rates found for the full run: do not compare optimizers by it.")


def write_csv(runs: list[Run], plan: Plan, path: Path) -> None:
    """The table with what is needed to repeat it."""
    rows = [
        {
            "optimizer": run.name,
            "held_out_loss": f"{run.held_out:.4f}",
            "lr": run.lr,
            "optimizer_step_ms": f"{run.optimizer_ms:.3f}",
            "state_bytes": run.state_bytes,
            "data_sha256": run.data_hash,
            "spikes_sha256": run.spike_hash,
            "spikes": len(plan.spiking),
            **conditions(plan),
        }
        for run in runs
    ]
    write_rows(rows, path)


def smooth(values: list[float], keep: float = 0.9) -> list[float]:
    """An exponential moving average, without bias towards its start."""
    result, average, weight = [], 0.0, 0.0
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(average / weight)
    return result


def write_plot(runs: list[Run], plan: Plan, path: Path) -> None:
    """Training losses, and below them what each run loses against the one without spikes; spikes and resets marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=130, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = range(1, plan.setting.steps + 1)
    yardstick = smooth(runs[0].losses)
    for run, colour in zip(runs, COLOURS, strict=True):
        curve = smooth(run.losses)
        style = {"color": colour, "linewidth": 1.6, "linestyle": "--" if run is runs[0] else "-"}
        top.plot(steps, curve, label=f"{run.name} (held out {run.held_out:.3f})", **style)
        bottom.plot(steps, [a - b for a, b in zip(curve, yardstick, strict=True)], **style)
    for axes in (top, bottom):
        _mark(axes, plan)
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_axisbelow(True)
    skip = plan.setting.steps // 20  # the first losses are far above all the rest
    shown = [value for run in runs for value in smooth(run.losses)[skip:]]
    top.set(ylim=(min(shown) - 0.05, max(shown)), xlim=(1, plan.setting.steps))
    top.set_ylabel("training loss, nats a byte (smoothed)")
    top.set_title(f"Training through gradient spikes (x{plan.setting.spike_factor:g}), seed {plan.setting.seed}")
    top.legend(loc="upper right", fontsize=9, framealpha=0.95)
    bottom.set_ylabel(f"loss above\n{runs[0].name!r}")
    bottom.set_xlabel("step")
    figure.savefig(path)


def _mark(axes: Any, plan: Plan) -> None:
    for i, step in enumerate(plan.spiking):
        axes.axvline(step, color="#d62728", alpha=0.35, linewidth=1, label=None if i else "spike")
    for i, step in enumerate(plan.setting.resets()):
        axes.axvline(step, color="#1f4fd8", alpha=0.6, linewidth=1, linestyle=":", label=None if i else "SPAM reset")
