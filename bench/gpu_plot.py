"""The picture of bench/gpu.py: what share of a copy's bandwidth each of our calls reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import Row


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """A bar for each call and backend: its least traffic at the copy's bandwidth, over the time that it took."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = {f"{row.comparison}: {row.quantity.split(' / ')[1]}": 100 * row.share for row in rows if row.share is not None}
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.25 * len(shares)), layout="constrained")
    axes.barh(list(shares), list(shares.values()), color="#3b6ea5")
    axes.axvline(100, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("share of the bandwidth of a copy, %")
    axes.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
