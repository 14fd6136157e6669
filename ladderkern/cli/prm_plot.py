"""Where in a response the least step score falls, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

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


def write_plot(panels: Sequence[tuple[str, Tensor, Tensor]], path: Path) -> None:
    """One panel for each (title, argmin, count) of a PRM's responses. Raises ValueError for a format that is not known."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.6 * len(panels), 4.4), dpi=130, layout="constrained")
    for axes, (title, argmin, count) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
    ):
        observed, even = (shares.tolist() for shares in shares_of_places(argmin, count))
        places = range(len(PLACES))
        bars = axes.bar(places, observed, width=0.7, color=["#1f4fd8"] * (len(PLACES) - 1) + ["#d62728"])
        axes.bar_label(bars, [f"{share:.0%}" for share in observed], padding=2, fontsize=9,
                       bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
        axes.hlines(even, [x - 0.42 for x in places], [x + 0.42 for x in places], color="#333333", linestyle=":",
                    label="if every step were as likely")  # fmt: skip
        axes.set_xticks(places, PLACES, fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.margins(y=0.12)
        axes.legend(loc="upper center", fontsize=9, frameon=False)
    figure.supylabel("share of responses with two steps or more", fontsize=10)
    figure.suptitle("Where a response's least step score falls", fontsize=12)
    figure.savefig(path)
