"""The README's picture of bench/results/*.csv: how many times longer each peer takes.  ``make bench-plot``

Writes docs/images/speed.svg, which follows the reader's light or dark setting, and speed.png for where no SVG is shown.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ladderkern.cli.plot_style import LIGHT, PALETTE, drawn, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS, IMAGES = ROOT / "bench" / "results", ROOT / "docs" / "images"

# file, heading, comparison in it, and the peers: (label, quantity). Of what others would run, not of our own variants.
_SPAM = [("AdamW, fused", "SPAM / AdamW fused"), ("AdamW, foreach", "AdamW foreach / SPAM")]
_SPAM += [("SPAM, torch.compile", "compiled SPAM / SPAM"), ("SPAM, eager, dense", "eager SPAM, no density / SPAM")]
_SPAM += [("SPAM, eager, as published", "eager SPAM, density 1 / SPAM")]
_SPAM += [("SPAM of pytorch_optimizer", "pytorch_optimizer SPAM / SPAM")]
_CHAINS = [("torch.compile", "compiled / ours"), ("eager", "eager / ours")]
_JOINT = [("F.cross_entropy alone", "joint / F.cross_entropy alone"), ("torch.compile", "joint / compiled sum")]
_JOINT += [("F.cross_entropy + eager", "joint / (F.cross_entropy + eager)")]
_PACKED = [("segment_reduce", "segment_reduce / ours"), ("torch.compile", "compiled / ours"), ("eager", "vectorised / ours")]
_CARD = [("the model card's loop", "card's loop / gather + score")]
PARTS: tuple[tuple[str, str, str, list[tuple[str, str]]], ...] = (
    ("spam", "SPAM, 33.5 M parameters", "fp32 dense", _SPAM),
    ("spam", "SPAM, 200 tensors of 64 × 64", "200 x 64x64", _SPAM),
    ("discrepancy", "Token discrepancy, 1024 × 8192", "loss fp32 [T, N]", [*_CHAINS, ("as published", "published / ours")]),
    ("discrepancy", "Joint loss, vocabulary 65,536", "joint fp32 [T, V]", _JOINT),
    ("prm", "Step scores, 25,697 steps", "packed fp32, ProcessBench size", _PACKED),
    ("prm", "Step scores, 512 × 12 from padded logits", "512 x 12 steps, [B, T, 2] fp32", _CARD),
    ("ladder", "Add and RMSNorm, 4096 × 4096", "add + norm fp32 [4096, 4096]", _CHAINS),
)


class Bar(NamedTuple):
    """A peer's time over ours, with its quartiles."""

    label: str
    median: float
    low: float
    high: float


class Picture(NamedTuple):
    """What is drawn: peers under headings, and the machine."""

    parts: list[tuple[str, list[Bar]]]
    machine: str


class Missing(Exception):
    """The results lack what the picture needs."""


def read(folder: Path) -> Picture:
    """The picture's figures, each as the peer's time over ours: a quantity that starts with ours is turned over."""
    rows: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    for name in dict.fromkeys(part[0] for part in PARTS):
        with (folder / f"{name}.csv").open(newline="") as file:
            rows[name] = {(row["comparison"], row["quantity"]): row for row in csv.DictReader(file)}
    machines = {_machine(next(iter(table.values()))) for table in rows.values()}
    if len(machines) > 1:
        raise Missing(f"the results are of different machines, versions or sizes: {'; '.join(sorted(machines))}")
    parts = []
    for name, heading, comparison, peers in PARTS:
        lost = [quantity for _, quantity in peers if (comparison, quantity) not in rows[name]]
        if lost:
            raise Missing(f"{name}.csv has no row {comparison!r}, {', '.join(map(repr, lost))}")
        parts.append((heading, [_bar(label, quantity, rows[name][comparison, quantity]) for label, quantity in peers]))
    return Picture(parts, machines.pop())


def _bar(label: str, quantity: str, row: dict[str, str]) -> Bar:
    median, low, high = (float(row[key]) for key in ("median", "q1", "q3"))
    if quantity.startswith(("SPAM /", "joint /")):
        return Bar(label, 1 / median, 1 / high, 1 / low)
    return Bar(label, median, low, high)


def _machine(row: dict[str, str]) -> str:
    """Processor and versions, of which a picture names one each."""
    tier = row["native"].rsplit(" ", 1)[-1]
    quick = ", QUICK: the figures mean nothing" if row["sizes"] != "full" else ""
    return f"{row['cpu']}, {tier}, {row['threads']} threads, torch {row['torch version']}, {row['date']}{quick}"


def draw(picture: Picture) -> Figure:
    """A bar for each peer on a logarithmic scale from 1, the quartiles on top, and the figure beside it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    lines = sum(len(bars) + 1.3 for _, bars in picture.parts)
    figure = Figure(figsize=(8.4, 1.3 + 0.235 * lines), layout="constrained")
    axes = figure.subplots()
    least = min(0.9, *(bar.low for _, bars in picture.parts for bar in bars))
    most = max(bar.high for _, bars in picture.parts for bar in bars)
    axes.set_xscale("log")
    axes.set_xlim(least, most * 1.9)  # room for the last figure
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for heading, bars in picture.parts:
        axes.annotate(heading, (1, y), (5, 0), textcoords="offset points", va="center", fontweight="bold", fontsize=9.5)
        for bar in bars:
            y += 1
            colour = LIGHT["blue"] if bar.median >= 1 else LIGHT["red"]
            axes.barh(y, bar.median - 1, left=1, height=0.62, color=colour)
            axes.hlines(y, bar.low, bar.high, color=LIGHT["ink"], linewidth=1.1)
            digits = 2 if bar.median < 1.995 else 1 if bar.median < 9.95 else 0  # near 1 the second one matters
            text = f"{bar.median:.{digits}f} ×"
            axes.annotate(text, (max(bar.high, bar.median, 1), y), (5, 0), textcoords="offset points", va="center", fontsize=9)
            ticks.append((y, bar.label))
        y += 1.3
    axes.axvline(1, color=LIGHT["muted"], linewidth=1)
    axes.set_ylim(y - 0.6, -0.8)
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xticks([at for at in (1, 2, 5, 10, 20, 50, 100, 200, 500) if at <= most], labels=None)
    axes.xaxis.set_major_formatter("{x:g} ×")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time of the peer / time of ladderkern; line: quartiles")
    figure.suptitle(f"How many times longer others take, float32 on a CPU\n{picture.machine}", x=0.01, ha="left", fontsize=9.5)
    return figure


def standalone(svg: str, label: str) -> str:
    """The SVG with colours of its own, light and dark, and paper behind it: a page cannot reach into an image."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    style = f"svg {{ {light} --sans: 'DejaVu Sans', Verdana, sans-serif; }}"
    style += f" @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    head, rest = svg.split(">", 1)
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f'{head} role="img" aria-label="{label}">\n<style>{style}</style>\n{paper}{rest}\n'


def main(arguments: Sequence[str] | None = None) -> int:
    """0: both pictures are written; 2: the results do not hold what they need."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of the pictures")
    options = parser.parse_args(arguments)
    try:
        picture = read(options.results)
    except (Missing, OSError) as error:
        print(f"bench-plot: {error}", file=sys.stderr)
        return 2
    options.images.mkdir(parents=True, exist_ok=True)
    figure = drawn(draw, picture)
    svg = standalone(to_svg(figure, "speed"), "How many times longer others take than ladderkern")
    (options.images / "speed.svg").write_text(svg)
    figure.savefig(options.images / "speed.png", dpi=130, facecolor=LIGHT["paper"], metadata={"Software": None})
    print(f"written: {options.images}/speed.svg, speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
