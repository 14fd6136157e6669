"""The demo's parts, run one after the other: progress, tables and findings in the terminal, all of it in ``report.html``."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from .demo_page import duration, write_page
from .demo_report import Options, print_heading, print_results
from .demo_workers import Workers

PARTS = ("spam", "images", "prm", "ladder")
_DRAWING = ("matplotlib", "jinja2")
_TRAINING = ("transformers", "tqdm")  # the PRM part trains nothing
_IMAGES = ("gymnasium", "pygame")  # of one extra: gymnasium[toy-text]


def missing(parts: Sequence[str]) -> list[str]:
    """What these parts need and this Python lacks, as pip names it."""
    needed = (*_DRAWING, *(() if set(parts) == {"prm"} else _TRAINING))
    lacking = [name for name in needed if importlib.util.find_spec(name) is None]
    if "images" in parts and any(importlib.util.find_spec(name) is None for name in _IMAGES):
        lacking.append("gymnasium[toy-text]")
    return lacking


def run_parts(parts: Sequence[str], options: Options) -> Path:
    """Run parts of :data:`PARTS` and write the report; returns its path."""
    started, start = datetime.now().astimezone(), time.perf_counter()
    sections = []
    with Workers(options.jobs) as workers:
        for number, part in enumerate(parts, start=1):
            module = importlib.import_module(f".demo_{part}", __package__)
            print_heading(module.TITLE, module.QUESTION, f"{number} of {len(parts)}")
            begun = time.perf_counter()
            section = module.run(options, workers)
            sections.append(dataclasses.replace(section, seconds=time.perf_counter() - begun))
            print_results(section)
            print(f"  ({duration(sections[-1].seconds)})\n\n")
    path = options.output / "report.html"
    write_page(sections, options, started, time.perf_counter() - start, path)
    print(f"Report: {path}  ({duration(time.perf_counter() - start)} in all; the tables' numbers are beside it as CSV)")
    print(f"        {path.absolute().as_uri()}")
    return path
