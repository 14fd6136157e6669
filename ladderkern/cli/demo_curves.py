"""The picture of the parts that train on text: losses, how far each lies from the first, and where all of them end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .plot_style import LIGHT, STROKES, Stroke

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """One run; the first of several is what the others are compared with."""

    name: str
    steps: Sequence[int]
    losses: Sequence[float]
    end: float  # held-out loss


def draw_curves(
    curves: Sequence[Curve],
    title: str,
    *,
    narrow: bool,
    skip: int = 0,
    mark_steps: Callable[[Any], None] = lambda axes: None,
) -> Figure:
    """Losses above, differences to the first curve below, and beside them (above them if narrow) the ends with all names.

    Args:
        skip: so many of the first losses may lie outside the panel of losses.
        mark_steps: draws on the axes of losses and of differences, before the curves.
    """
    from matplotlib.figure import Figure

    if narrow:
        heights = (0.75 + 0.27 * len(curves), 4.6)
        figure = Figure(figsize=(3.9, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=heights)
        upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
        ends = upper.subplots()
        losses, differences = lower.subplots(2, 1, height_ratios=(3, 2))
    else:
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        panels = figure.subplot_mosaic([["losses", "ends"], ["differences", "ends"]], width_ratios=(5, 3), height_ratios=(3, 2))
        ends, losses, differences = (panels[name] for name in ("ends", "losses", "differences"))
    differences.sharex(losses)
    for axes in (losses, differences):
        mark_steps(axes)
    for curve, stroke in zip(curves, STROKES, strict=False):
        style = _style(stroke, max(1, len(curve.steps) // 6))
        losses.plot(curve.steps, curve.losses, **style)
        differences.plot(curve.steps, [a - b for a, b in zip(curve.losses, curves[0].losses, strict=True)], **style)
    low, high = _finite_range(loss for curve in curves for loss in curve.losses[skip:])
    margin = 0.05 * (high - low)
    losses.set_ylim(low - margin, high + margin)
    losses.tick_params(labelbottom=False)
    losses.set_title(title)
    differences.set_title(f"Difference to “{curves[0].name}”")
    differences.set_xlabel("step")
    differences.margins(x=0.02)
    if losses.get_legend_handles_labels()[1]:
        losses.legend(loc="upper right", handlelength=1.4)
    _draw_ends(ends, curves)
    figure.supylabel("nats a byte: less is better", fontsize=9.5, color=LIGHT["muted"])
    return figure


def _finite_range(values: Iterable[float]) -> tuple[float, float]:
    """The least and the greatest of what is finite, a little apart from each other in any case."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    return min(finite), max(*finite, min(finite) + 1e-3)


def _style(stroke: Stroke, markevery: int) -> dict[str, Any]:
    return {
        "color": stroke.colour,
        "linestyle": stroke.dash,
        "marker": stroke.marker,
        "markersize": 5,
        "markevery": markevery,
    }


def _draw_ends(axes: Any, curves: Sequence[Curve]) -> None:
    """A row a curve: its name, a point at its end with the stroke of its line, and the number."""
    rows = range(len(curves))
    low, high = _finite_range(curve.end for curve in curves)
    room = high - low
    for row, curve, stroke in zip(rows, curves, STROKES, strict=False):
        if not math.isfinite(curve.end):
            axes.annotate("diverged", (low, row), va="center")
            continue
        axes.plot([low - room, curve.end], [row, row], color=stroke.colour, linestyle=stroke.dash, linewidth=1.4)
        axes.plot([curve.end], [row], color=stroke.colour, marker=stroke.marker, markersize=7)
        axes.annotate(f"{curve.end:.3f}", (curve.end, row), (8, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, [curve.name for curve in curves])
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
    axes.set(xlim=(low - 0.5 * room, high + 0.55 * room), ylim=(len(curves) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    axes.set_title("Held-out loss at the end")
    axes.set_xlabel("nats a byte")
    axes.locator_params(axis="x", nbins=4)
