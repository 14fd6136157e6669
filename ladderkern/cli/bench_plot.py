"""The ratios of ``python -m ladderkern bench`` as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .bench import Comparison, times
from .plot_style import LIGHT, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """What is drawn, and what stands above and below it."""

    comparisons: Sequence[Comparison]
    title: str
    machine: str


def draw(picture: Picture) -> Figure:
    """A line for each peer: its time over ours, a dot with quartiles; around 1 a band as wide as the noise of the case."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    lines = sum(len(each.rows) + 1 for each in picture.comparisons)
    figure = Figure(figsize=(9, 1.5 + 0.27 * lines), layout="constrained")
    axes = figure.subplots()
    ratios = [row.value for each in picture.comparisons for row in each.rows]
    least, most = min(1.0, *(r.low for r in ratios)), max(1.0, *(r.high for r in ratios))
    axes.set_xscale("log")
    axes.set_xlim(least / 1.25, most * (most / least) ** 0.12 * 1.25)  # room for the figures to the right of the dots
    labels: list[tuple[float, str]] = []
    y = 0.0
    for each in picture.comparisons:
        axes.text(0, y, f"{each.name}: {each.title.removeprefix(each.name + ', ')}", transform=axes.get_yaxis_transform(),
                  va="center", fontweight="bold", fontsize=9)  # fmt: skip
        control = each.rows[0].control
        if control is not None:
            axes.fill_betweenx((y + 0.5, y + len(each.rows) + 0.5), control.low, control.high, color=LIGHT["rule"], linewidth=0)
        for row in each.rows:
            y += 1
            median, low, high = row.value
            colour = LIGHT["blue"] if median >= 1 else LIGHT["red"]
            axes.hlines(y, low, high, color=colour)
            axes.plot(median, y, "o" if median >= 1 else "s", color=colour, markersize=5)
            axes.annotate(times(median), (high, y), (6, 0), textcoords="offset points", va="center", fontsize=9)
            labels.append((y, row.quantity.removesuffix(" / ours")))
        y += 1.2
    axes.axvline(1, color=LIGHT["muted"], linewidth=1)
    axes.set_ylim(y - 0.4, -0.7)
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels])
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter("{x:g} ×")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"its time over ladderkern's, median and quartiles; grey: noise\n{picture.machine}")
    axes.set_title(picture.title)
    return figure


def write_plot(picture: Picture, path: Path) -> None:
    """:func:`draw` into a file, whose ending says the format."""
    drawn(draw, picture).savefig(path)
