"""The lanes of a timeline as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .lanes import Interval, Lanes

HEIGHT = 0.8
COMPUTE = {"forward": ("#3b6fd4", "#8fb0ec"), "backward": ("#7a4fb5", "#bda3de")}  # of even and odd branches
NO_BRANCH, HIDDEN, EXPOSED, OTHER = "#c9c9c9", "#3f9b57", "#d62728", "#888888"


def write_lanes(timeline: Any, path: Path) -> None:
    """Two rows for each rank: compute, and communication with what is exposed of it in red."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(12, 1.6 + 1.1 * len(timeline.ranks)), dpi=130, layout="constrained")
    axes = figure.subplots()
    labels = []
    for rank, lanes in enumerate(timeline.ranks):
        row = 2.4 * rank
        _compute(axes, row, lanes)
        _communication(axes, row + 1, lanes)
        labels += [(row, f"rank {rank}\ncompute"), (row + 1, "sums")]
    axes.set_yticks([row for row, _ in labels], [text for _, text in labels], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1e3 * max(lanes.seconds for lanes in timeline.ranks))
    axes.set_xlabel("ms from the start of the step")
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    share = timeline.hidden_share
    known = "no communication" if share != share else f"{share:.0%} of the communication is hidden behind compute"
    axes.set_title(known, fontsize=11)
    phases = {interval.name.phase for lanes in timeline.ranks for interval in lanes.compute if interval.name}
    shown = [(f"{phase}, even | odd branches", COMPUTE[phase][0]) for phase in COMPUTE if phase in phases]
    shown += [("outside branches", NO_BRANCH), ("sum, hidden", HIDDEN), ("sum, exposed", EXPOSED)]
    if any(lanes.other for lanes in timeline.ranks):
        shown.append(("others' collectives", OTHER))
    figure.legend(
        handles=[Patch(color=color, label=label) for label, color in shown],
        loc="outside lower center", ncols=len(shown), fontsize=9, frameon=False,
    )  # fmt: skip
    figure.savefig(path)


def _compute(axes: Any, row: float, lanes: Lanes) -> None:
    for interval in lanes.compute:
        color = NO_BRANCH if interval.name is None else COMPUTE[interval.name.phase][interval.name.branch % 2]
        _bars(axes, row, [(interval.start, interval.end)], color)
        _number(axes, row, interval, lanes.seconds)


def _communication(axes: Any, row: float, lanes: Lanes) -> None:
    for interval in lanes.communication:
        _bars(axes, row, [(interval.start, interval.end)], HIDDEN)
        _bars(axes, row, lanes.exposed(interval), EXPOSED)
        _number(axes, row, interval, lanes.seconds)
    _bars(axes, row, [(interval.start, interval.end) for interval in lanes.other], OTHER)


def _bars(axes: Any, row: float, spans: Sequence[tuple[float, float]], color: str) -> None:
    bars = [(1e3 * start, 1e3 * (end - start)) for start, end in spans]
    axes.broken_barh(bars, (row - HEIGHT / 2, HEIGHT), facecolors=color)


def _number(axes: Any, row: float, interval: Interval, seconds: float) -> None:
    """The branch's number, where there is room for it."""
    if interval.name is not None and interval.end - interval.start > 0.012 * seconds:
        middle = 1e3 * (interval.start + interval.end) / 2
        axes.text(middle, row, str(interval.name.branch), ha="center", va="center", fontsize=7, color="white")
