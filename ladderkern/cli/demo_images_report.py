"""What the images part shows at the end: a table, a guide to reading it, and decoded pictures side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..runtime.backend import explain
from .demo_frozen_lake import GRID, MOVES, PATCH, TOKENS, Plan
from .demo_images_training import Run
from .demo_report import guide, software, text_table, write_rows

_HEADER = ("loss", "tokens right", "of changed tokens", "pictures right", "distance of wrong tokens", "of all tokens", "step")


def table(runs: list[Run]) -> str:
    """The results on held-out boards, one run a line."""
    rows = [
        (
            run.name,
            f"{run.accuracy:.2%}",
            f"{run.accuracy_changed:.2%}",
            f"{run.exact:.1%}",
            "none wrong" if run.accuracy == 1 else f"{run.wrong_distance:.4f}",
            f"{run.distance:.5f}",
            f"{run.step_ms:.0f} ms",
        )
        for run in runs
    ]
    return text_table(_HEADER, rows)


def reading_guide(plan: Plan, *, quick: bool) -> str:
    """What the columns mean and what the numbers are good for."""
    held_out = plan.held_out
    changed = float((held_out.before != held_out.after).float().sum(1).mean())
    lines = [
        f"{len(held_out.move)} moves on boards never trained on; each picture generated greedily, all {TOKENS} tokens from the "
        "model's own.",
        f"Changed tokens: those in which the pictures before and after differ, {changed:.1f} a move; the others are a copy.",
        "Distance: mean squared difference of the two codes' pixels, in units of the pixels' variance (random codes: 2).",
        f"This is one seed ({plan.setting.seed}), one learning rate, a short run: try --seed N before believing a difference.",
        f"Joint: {explain('cross_entropy_discrepancy', torch.empty(1))}.",
    ]
    return guide(lines, quick, "long before the model has learnt to copy: do not compare the losses by it.")


def write_csv(runs: list[Run], plan: Plan, path: Path) -> None:
    """The table with what is needed to repeat it."""
    rows = [
        {
            "loss": run.name,
            "token_accuracy": f"{run.accuracy:.5f}",
            "changed_token_accuracy": f"{run.accuracy_changed:.5f}",
            "pictures_right": f"{run.exact:.5f}",
            "wrong_token_distance": f"{run.wrong_distance:.5f}",
            "token_distance": f"{run.distance:.6f}",
            "step_ms": f"{run.step_ms:.2f}",
            "data_sha256": run.data_hash,
            "seed": plan.setting.seed,
            "held_out_moves": len(plan.held_out.move),
            "codes": len(plan.codebook.codes),
            "codebook_rms": f"{plan.codebook_error:.3f}",
            **software(),
            "setting": plan.setting.describe(),
        }
        for run in runs
    ]
    write_rows(rows, path)


def write_pictures(runs: list[Run], plan: Plan, path: Path, columns: int = 6) -> None:
    """Decoded pictures of the first held-out moves: before, truth, and what each run generated, its wrong tokens framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    truth = plan.held_out.after
    columns = min(columns, len(truth))
    strips = [("before", plan.held_out.before), ("truth", truth), *((run.name, run.predicted) for run in runs)]
    figure = Figure(figsize=(1.75 * columns + 0.9, 2.0 * len(strips) + 0.9), dpi=130, layout="constrained")
    grid = figure.subplots(len(strips), columns, squeeze=False)
    for axes_row, (name, tokens) in zip(grid, strips, strict=True):
        for i, axes in enumerate(axes_row):
            picture = plan.codebook.decode(tokens[i : i + 1])[0]
            axes.imshow(picture.numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if name == "before":
                axes.set_title(f"move {MOVES[int(plan.held_out.move[i])]}", fontsize=10)
                continue
            if name == "truth":
                continue
            wrong = tokens[i] != truth[i]
            for corner in _corners(wrong):
                axes.add_patch(Rectangle(corner, PATCH, PATCH, fill=False, edgecolor="#d62728", linewidth=1.5))
            axes.set_xlabel(f"{int(wrong.sum())} of {TOKENS} tokens wrong" if wrong.any() else "all tokens right", fontsize=8)
        axes_row[0].set_ylabel(name, fontsize=11)
    title = f"Held-out boards, all decoded from tokens, after {plan.setting.steps} steps, seed {plan.setting.seed}"
    figure.suptitle(f"{title}; wrong tokens framed", fontsize=10)
    figure.savefig(path)


def _corners(wrong: Tensor) -> list[tuple[float, float]]:
    """Where in imshow's coordinates the tokens marked in ``wrong`` [TOKENS] begin; a pixel's centre is at whole numbers."""
    return [(i % GRID * PATCH - 0.5, i // GRID * PATCH - 0.5) for i in wrong.nonzero()[:, 0].tolist()]
