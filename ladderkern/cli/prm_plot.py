"""Where in a response the least step score falls, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .plot_style import LIGHT, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES = ("first step", "early", "middle", "late", "last step")


def shares_of_places(argmin: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the responses whose least score falls on each of PLACES, and the share if all steps were equally likely.

    Of the responses with two steps or more. Early, middle and late are thirds of the steps between the first and the last; a
    single one there is in the middle.  2 x [5] float64
    """
    several = count >= 2
    argmin, count = argmin[several], count[several]
    response = torch.arange(len(count)).repeat_interleave(count)
    position = torch.arange(int(count.sum())) - (count.cumsum(0) - count)[response]

    def add_up(position: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        between = (3 * (2 * position - 1)).div((2 * (last - 1)).clamp(min=1), rounding_mode="floor") + 1
        place = torch.where(position == 0, 0, torch.where(position == last, len(PLACES) - 1, between))
        return torch.zeros(len(PLACES), dtype=torch.float64).index_add(0, place, weights) / len(count)

    observed = add_up(argmin, count - 1, torch.ones(len(count), dtype=torch.float64))
    return observed, add_up(position, count[response] - 1, 1 / count[response].double())


def draw(panels: Sequence[tuple[str, Tensor, Tensor]], *, narrow: bool = False) -> Figure:
    """One panel for each (title, argmin, count) of a PRM's responses, side by side, or if ``narrow`` one below the other."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    rows, columns = (len(panels), 1) if narrow else (1, len(panels))
    figure = Figure(figsize=(3.9 if narrow else max(5.2, 4.6 * columns), 2.7 * rows if narrow else 3.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (title, argmin, count) in zip(grid.flat, panels, strict=True):
        observed, even = (shares.tolist() for shares in shares_of_places(argmin, count))
        places = range(len(PLACES))
        axes.bar(places, observed, width=0.7, color=[LIGHT["blue"]] * (len(PLACES) - 1) + [LIGHT["red"]])
        axes.hlines(even, [x - 0.45 for x in places], [x + 0.45 for x in places], color=LIGHT["ink"], linestyle=(0, (2, 1.5)),
                    label="if every step were as likely")  # fmt: skip
        heights = [max(shares) for shares in zip(observed, even, strict=True)]
        for x, share, height in zip(places, observed, heights, strict=True):
            axes.annotate(f"{100 * share:.0f} %", (x, height), (0, 3), textcoords="offset points", ha="center")
        axes.set_xticks(places, [place.replace(" ", "\n") for place in PLACES])
        axes.tick_params(axis="x", length=0, labelcolor=LIGHT["ink"])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_title(title)
        axes.margins(y=0.12)
    grid.flat[0].legend(loc="upper left")
    figure.supylabel("share of responses" if narrow else "share of the responses with two steps or more", fontsize=9.5,
                     color=LIGHT["muted"])  # fmt: skip
    return figure


def write_plot(panels: Sequence[tuple[str, Tensor, Tensor]], path: Path) -> None:
    """:func:`draw` into a file. Raises ValueError for a format that is not known."""

    def draw_titled(narrow: bool) -> Figure:
        figure = draw(panels, narrow=narrow)
        figure.suptitle("Where a response's least step score falls", fontsize=11.5)
        return figure

    drawn(draw_titled, False).savefig(path)
