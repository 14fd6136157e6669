"""One look for the pictures of the demo and of the PRM report: colours for light and dark pages, and SVG that follows the page.

Matplotlib draws with the light colours. In the SVG each becomes a CSS variable of the page around it, and changes with it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# name: (on a light page, on a dark one). Grey to purple tell series apart, also for readers who see red and green alike.
PALETTE = {
    "ink": ("#1d2127", "#e7eaee"),
    "muted": ("#57606a", "#a6afba"),
    "rule": ("#dfe3e8", "#363d47"),
    "paper": ("#ffffff", "#161a20"),
    "grey": ("#7a828c", "#8f99a5"),
    "red": ("#a82a0a", "#ff7a59"),
    "amber": ("#b98200", "#f5cf63"),
    "blue": ("#1f5fc4", "#5ea2ff"),
    "green": ("#0b8f6a", "#46d6a4"),
    "purple": ("#8a2f86", "#f0a6e6"),
    "frame": ("#b3001e", "#b3001e"),  # on photographs and the like, which do not change
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_NAMES = {light: name for name, light in LIGHT.items()}
_FONT = "DejaVu Sans"  # Matplotlib brings it; wider than what a browser puts in its place, so that nothing is cut off
_LOOK: Any = {
    "font.family": _FONT,
    "font.size": 9.5,
    "text.color": LIGHT["ink"],
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 9.5,
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": LIGHT["paper"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.facecolor": LIGHT["paper"],
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    "figure.facecolor": LIGHT["paper"],
    "figure.dpi": 130,
    "svg.fonttype": "none",
}


class Stroke(NamedTuple):
    """How a series is told from the others: by colour, and without it by dash and marker."""

    colour: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


STROKES = (
    Stroke(LIGHT["grey"], (0, (5, 2)), "o"),
    Stroke(LIGHT["red"], "-", "s"),
    Stroke(LIGHT["amber"], (0, (6, 1.5, 1.5, 1.5)), "D"),
    Stroke(LIGHT["blue"], "-", "^"),
    Stroke(LIGHT["green"], (0, (8, 2)), "v"),
    Stroke(LIGHT["purple"], (0, (2, 1.2)), "P"),
)


def drawn(draw: Callable[[Any], Figure], argument: Any) -> Figure:
    """What ``draw(argument)`` draws, in this look."""
    import matplotlib

    with matplotlib.rc_context(_LOOK):
        return draw(argument)


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element that stands in a page: as wide as its place, its ids beginning with ``prefix``.

    Colours of :data:`PALETTE` become ``var(--name)``. Raises KeyError for any other colour, which would not follow the page.
    """
    import matplotlib

    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**_LOOK, "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda own: own[0] if own[1] in used else "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", svg)
    svg = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda colour: f"var(--{_NAMES[colour[0]]})", svg)
    return svg.replace(f"'{_FONT}'", "var(--sans)").strip()
