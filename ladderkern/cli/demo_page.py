"""The demo's report: one HTML file that asks for nothing outside itself."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ..runtime.info import info
from ..runtime.machine import cores, processor
from .demo_report import Options, Section
from .plot_style import PALETTE, drawn, to_svg


def write_page(sections: Sequence[Section], options: Options, started: datetime, seconds: float, path: Path) -> None:
    """Write the report of some parts that began at ``started`` and took so many seconds."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    page = environment.get_template("demo.html").render(
        sections=[(section, _embedded(section)) for section in sections],
        options=options,
        command=options.command(sections[0].part if len(sections) == 1 else None),
        facts=_facts(options, started, seconds),
        version=info()["ladderkern"],
        duration=duration,
        palette=PALETTE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _prose(text: str) -> str:
    """Text as HTML: what stands between backticks as code, percent signs bound to their numbers."""
    escaped = html.escape(text).replace(" %", "\u00a0%")
    return re.sub(r"`([^`]+)`", lambda code: f"<code{' class=word' if ' ' not in code[1] else ''}>{code[1]}</code>", escaped)


def _embedded(section: Section) -> dict[str, str]:
    """The picture in both shapes as SVG, and the table's file as a data URI."""
    shapes = {"wide": False, "narrow": True}
    svgs = {name: to_svg(drawn(section.picture.draw, narrow), f"{section.part}-{name}") for name, narrow in shapes.items()}
    return {**svgs, "csv": f"data:text/csv;base64,{base64.b64encode(section.csv.read_bytes()).decode()}"}


def _facts(options: Options, started: datetime, seconds: float) -> list[tuple[str, str]]:
    """On what the numbers depend: names and texts."""
    about = info()
    facts: dict[str, Any] = {
        "run": f"{'quick' if options.quick else 'full'}, seed {options.seed}, {options.jobs} at a time",
        "on": f"{started:%Y-%m-%d %H:%M %Z}, {duration(seconds)}",
        "ladderkern": f"{about['ladderkern']}, native library {about['native']}",
        "PyTorch": torch.__version__,
        "transformers": _version("transformers"),
        "Python": about["python"],
        "processor": f"{processor()}, {cores()} cores",
        "GPU": about["gpu"],
    }
    return [(name, str(value)) for name, value in facts.items()]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def duration(seconds: float) -> str:
    """Seconds in words: ``2 min 41 s``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
