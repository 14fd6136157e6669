"""What the images part shows: its table, what the table says, and decoded pictures side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..runtime.backend import explain
from .demo_frozen_lake import GRID, MOVES, PATCH, TOKENS, Plan
from .demo_images_training import Run
from .demo_report import Table, percent, software, write_rows
from .plot_style import LIGHT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = ("loss", "tokens right", "of changed tokens", "pictures right", "distance of wrong tokens", "of all tokens", "step")


def table(runs: list[Run]) -> Table:
    """The results on held-out boards, one run a line."""
    rows = [
        (
            run.name,
            percent(run.accuracy, 2),
            percent(run.accuracy_changed, 2),
            percent(run.exact),
            _distance_of_wrong(run, 4),
            f"{run.distance:.5f}",
            f"{run.step_ms:.0f} ms",
        )
        for run in runs
    ]
    wrong = [0.0 if run.accuracy == 1 else run.wrong_distance for run in runs]
    measures = [(r.accuracy, r.accuracy_changed, r.exact, -far, -r.distance) for r, far in zip(runs, wrong, strict=True)]
    best = {(values.index(max(values)), column) for column, values in enumerate(zip(*measures, strict=True), start=1)}
    caption = (
        "Changed tokens: those in which the pictures before and after differ; the others are a copy. Distance: mean squared "
        "difference of the two codes' pixels in units of the pixels' variance (2 for codes at random). Bold: the better one."
    )
    return Table(caption, _HEADER, rows, frozenset(best))


def changed_gain(first: Run, second: Run, plan: Plan) -> tuple[float, float]:
    """How many more tokens a move changes does the second run get right, as a share, and the standard error of that.

    Both runs are judged on the same pictures, so the error is that of the differences picture by picture.
    """
    truth = plan.held_out
    changed = truth.before != truth.after
    right = [((run.predicted == truth.after) & changed).sum(1).double() for run in (first, second)]
    difference = right[1] - right[0]
    pictures, tokens = len(difference), int(changed.sum())
    error = float(difference.std()) * math.sqrt(pictures) / tokens if pictures > 1 else math.nan
    return float(difference.sum()) / tokens, error


def findings(runs: list[Run], plan: Plan) -> list[str]:
    """What the numbers say."""
    alone, joint = runs
    gain, error = changed_gain(alone, joint, plan)
    verdict = "more than" if abs(gain) > 2 * error else "within"
    return [
        f"Joint loss: {percent(joint.accuracy)} of the tokens right, {percent(joint.accuracy_changed)} of those that a move "
        f"changes; cross-entropy alone: {percent(alone.accuracy)} and {percent(alone.accuracy_changed)}.",
        f"The difference in changed tokens, {100 * gain:+.1f} points, is {verdict} two standard errors (of {100 * error:.1f} "
        f"points, over these {len(plan.held_out.move)} pictures; chance in training comes on top).",
        f"Mean distance of a wrong token's code to the right one's: {_distance_of_wrong(joint, 2)} with the joint loss, "
        f"{_distance_of_wrong(alone, 2)} with cross-entropy alone (2 for codes at random).",
    ]


def _distance_of_wrong(run: Run, digits: int) -> str:
    return "none wrong" if run.accuracy == 1 else f"{run.wrong_distance:.{digits}f}"


def setup(plan: Plan, parameters: int) -> list[tuple[str, str]]:
    """What was trained on what."""
    setting, codes = plan.setting, len(plan.codebook.codes)
    return [
        ("model", f"a Llama of {parameters / 1e6:.2f} M parameters over moves and image tokens, one run for each loss"),
        (
            "pictures",
            f"{plan.num_pictures:,} rendered by gymnasium, random 4 × 4 maps; {setting.held_out_boards} of "
            f"{setting.boards + setting.held_out_boards} boards are held out",
        ),
        (
            "tokens",
            f"{GRID} × {GRID} = {TOKENS} a picture, from {codes} k-means codes of the training boards' patches; decoding errs "
            f"by {plan.codebook_error:.1f} of 255 (root mean square, held-out pictures)",
        ),
        ("sequence", f"{TOKENS} tokens before, a move, {TOKENS} tokens after; the loss is on the last {TOKENS}"),
        (
            "training",
            f"{setting.steps} steps of {setting.batch} of {len(plan.train.move):,} moves, AdamW at {setting.lr:g}, on one "
            "thread; the same first weights and data for both",
        ),
        (
            "joint",
            f"cross-entropy + {setting.weight:g} × token discrepancy (cross_entropy_with_discrepancy). "
            f"{explain('cross_entropy_discrepancy', torch.empty(1))}",
        ),
        ("judged", "each picture generated greedily, all tokens from the model's own"),
    ]


def caveats(plan: Plan, *, quick: bool) -> list[str]:
    """What the numbers are not good for."""
    lines = [
        f"One seed ({plan.setting.seed}), one learning rate, a quarter-million-parameter model: it does not settle what the "
        "loss is worth. Repeat it with another `--seed` before believing a difference.",
        "Most tokens are copied from the picture before; the changed ones are the test.",
    ]
    early = "`--quick` stops long before the model has learnt to copy: do not compare the losses by it."
    return [early, *lines] if quick else lines


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


def draw(runs: list[Run], plan: Plan, narrow: bool) -> Figure:
    """Decoded pictures of the first held-out moves: before, truth, and what each run generated, its wrong tokens framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    truth = plan.held_out.after
    columns = min(3 if narrow else 6, len(truth))
    side = 1.15 if narrow else 1.4
    strips = [("before", plan.held_out.before), ("truth", truth), *((run.name, run.predicted) for run in runs)]
    figure = Figure(figsize=(side * columns + 0.4, (side + 0.28) * len(strips)), layout="constrained")
    grid = figure.subplots(len(strips), columns, squeeze=False)
    for axes_row, (name, tokens) in zip(grid, strips, strict=True):
        for i, axes in enumerate(axes_row):
            axes.imshow(plan.codebook.decode(tokens[i : i + 1])[0].numpy(), interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            axes.spines[:].set(visible=True, color=LIGHT["muted"])
            if name == "before":
                axes.set_title(f"move {MOVES[int(plan.held_out.move[i])]}", loc="center", fontsize=9.5)
                continue
            if name == "truth":
                continue
            wrong = tokens[i] != truth[i]
            for corner in _corners(wrong):
                axes.add_patch(Rectangle(corner, PATCH, PATCH, fill=False, edgecolor=LIGHT["frame"], linewidth=1.4))
            axes.set_xlabel(f"{int(wrong.sum())} wrong" if wrong.any() else "all right", fontsize=9)
        axes_row[0].set_ylabel(name, fontsize=9.5, color=LIGHT["ink"])
    return figure


def _corners(wrong: Tensor) -> list[tuple[float, float]]:
    """Where in imshow's coordinates the tokens marked in ``wrong`` [TOKENS] begin; a pixel's centre is at whole numbers."""
    return [(i % GRID * PATCH - 0.5, i // GRID * PATCH - 0.5) for i in wrong.nonzero()[:, 0].tolist()]
