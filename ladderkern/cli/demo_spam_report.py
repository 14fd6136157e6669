"""What the optimizer part shows: its table, what the table says, and the losses of all runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..runtime.backend import explain
from .demo_curves import Curve, draw_curves
from .demo_report import Table, compared, conditions, percent, write_rows
from .demo_training import Plan, Run
from .plot_style import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = ("optimizer", "held-out loss", "lr", "optimizer step", "optimizer state")


def table(runs: list[Run]) -> Table:
    """The results, one run a line, the yardstick first."""
    rows = [
        (run.name, f"{run.held_out:.4f}", f"{run.lr:g}", f"{run.optimizer_ms:.2f} ms", f"{run.state_bytes / 1e6:.2f} MB")
        for run in runs
    ]
    spiked = range(1, len(runs))
    best = {(min(spiked, key=lambda i: _rank(runs[i])), 1), (min(spiked, key=lambda i: runs[i].optimizer_ms), 3)}
    best |= {(i, 4) for i in spiked if runs[i].state_bytes == min(run.state_bytes for run in runs)}
    caption = "Loss in nats a byte, on text never trained on; step: the median, clipping included. Bold: the best under spikes."
    return Table(caption, _HEADER, rows, frozenset(best))


def _rank(run: Run) -> tuple[bool, float]:
    """What runs are ordered by: the held-out loss, those that diverged last."""
    return math.isnan(run.held_out), run.held_out


def findings(runs: list[Run]) -> list[str]:
    """What the numbers say."""
    yardstick, *spiked = runs
    named = {run.name: run for run in spiked}
    adamw, clipped, dense = named["AdamW"], named["AdamW, clip norm 1"], named["SPAM"]
    sparse = [run for run in spiked if run.name.startswith("SPAM, ")]
    best = min(spiked, key=_rank)
    cost = adamw.held_out - yardstick.held_out
    than_adamw = "" if best is adamw else f", {compared(best.held_out, adamw.held_out)} plain AdamW"
    return [
        f"Lowest under spikes: {best.name}, at {best.held_out:.3f} nats a byte{than_adamw}, with "
        f"{percent(best.state_bytes / adamw.state_bytes, 0)} of AdamW's state.",
        f"The spikes {f'cost AdamW {cost:.3f}' if cost > 0 else 'cost AdamW nothing'} ({yardstick.held_out:.3f} without them, "
        f"{adamw.held_out:.3f} with them).",
        f"Dense SPAM ends {compared(dense.held_out, adamw.held_out)} plain AdamW, and "
        f"{compared(dense.held_out, clipped.held_out)} the simplest remedy, clipping the norm of AdamW's gradient to 1.",
        f"Sparse moments: {' and '.join(f'{run.optimizer_ms:.2f}' for run in sparse)} ms a step against "
        f"{adamw.optimizer_ms:.2f} ms for torch's fused AdamW and {dense.optimizer_ms:.2f} ms for dense SPAM.",
    ]


def setup(plan: Plan) -> list[tuple[str, str]]:
    """What this part adds to the training: spikes, and the optimizers' own settings."""
    setting = plan.setting
    return [
        (
            "spikes",
            f"at {len(plan.spiking)} random steps; {percent(setting.spike_share, 0)} of the coordinates of each gradient, "
            f"drawn at random, × {setting.spike_factor:g}",
        ),
        (
            "SPAM",
            f"resets every {setting.reset_interval} steps, warms up again for {setting.warmup_steps}, clips from step "
            f"{setting.unclipped_steps} of a cycle on (published: 500, 150 and 20; scaled to this short run); eps 1e-6 and "
            f"threshold 5000, as published. {explain('spam_step_', torch.empty(1))}",
        ),
        ("AdamW", "torch's fused one, eps 1e-8"),
        ("lr", "for each optimizer its best in `bench/results/demo_sweep.csv`, one grid for all, found with another seed"),
    ]


def caveats(plan: Plan, *, quick: bool) -> list[str]:
    """What the numbers are not good for."""
    lines = [
        f"One seed ({plan.setting.seed}), one small model, a short run: losses closer than about 0.05 are in no certain order. "
        "Repeat it with another `--seed`.",
        "The spikes are made, not met: of the size that the paper reports, and on as many coordinates as it takes to cost "
        "AdamW something.",
    ]
    early = "`--quick` stops early, at learning rates found for the full run: do not compare optimizers by it."
    return [early, *lines] if quick else lines


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


def draw(runs: list[Run], plan: Plan, narrow: bool) -> Figure:
    """Training losses, what each run loses against the one without spikes, and the ends; spikes and resets marked."""
    steps = range(1, plan.setting.steps + 1)
    curves = [Curve(run.name, steps, smooth(run.losses), run.held_out) for run in runs]

    def mark_steps(axes: Any) -> None:
        for i, step in enumerate(plan.spiking):
            axes.axvline(step, color=LIGHT["red"], alpha=0.3, linewidth=1, label=None if i else "spike")
        for i, step in enumerate(plan.setting.resets()):
            axes.axvline(step, color=LIGHT["blue"], alpha=0.7, linewidth=1, linestyle=":", label=None if i else "SPAM reset")

    # The first losses are far above all the rest.
    return draw_curves(curves, "Training loss, smoothed", narrow=narrow, skip=len(steps) // 20, mark_steps=mark_steps)
