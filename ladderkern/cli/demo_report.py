"""What the demo's parts share: what a part has to show, how it is printed, and what is written beside the report."""

from __future__ import annotations

import csv
import functools
import math
import platform
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..runtime.text import text_table
from .demo_training import BETAS, Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options:
    """What a part is told: the command line of the demo."""

    quick: bool = False
    seed: int = 0
    output: Path = Path("demo")
    jobs: int = 1  # so many training runs at a time

    def command(self, part: str | None = None) -> str:
        """The command that runs the demo, or one part of it, and gives the same numbers."""
        words = ["python -m ladderkern demo", f"--part {part}" if part else "", "--quick" if self.quick else ""]
        return " ".join([*filter(None, words), f"--seed {self.seed}"])


@dataclass(frozen=True)
class Table:
    """Cells of text under a header; the first of a row names it."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the cells to stand out


@dataclass(frozen=True)
class Picture:
    """A picture in two shapes: ``draw(narrow)`` is for a wide page, or for that of a phone."""

    draw: Callable[[bool], Figure]
    alt: str  # what it shows, for those who do not see it
    caption: str


@dataclass(frozen=True)
class Section:
    """What one part has to show. The terminal prints its table and findings, the report all of it."""

    part: str
    title: str
    question: str
    paper: str  # arXiv number
    findings: list[str]  # made of the run's numbers; the first stands for all where there is little room
    table: Table
    picture: Picture
    setup: list[tuple[str, str]]
    caveats: list[str]
    csv: Path
    seconds: float = field(default=0.0, compare=False)


def progress_bar(title: str, unit: str = "step") -> Callable[[Iterable[Any]], Iterable[Any]]:
    """A wrapper of what is iterated over that shows how far it is."""
    from tqdm import tqdm

    return functools.partial(tqdm, desc=f"{title:22}", unit=unit, mininterval=0.5)


def print_heading(title: str, question: str, place: str) -> None:
    """What is about to run, before its progress bars."""
    print(f"{title}  ({place})\n{_wrapped(question)}\n", flush=True)


def print_results(section: Section) -> None:
    """The table and what it says."""
    print(f"\n{text_table(section.table.header, section.table.rows)}\n")
    for finding in section.findings:
        print(_wrapped(finding, "- "))


def _wrapped(text: str, mark: str = "") -> str:
    return textwrap.fill(text, 112, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows with the same keys as a CSV file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def software() -> dict[str, Any]:
    """What a run depends on beside its plan, as columns of a CSV file."""
    return {"threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__}


def conditions(plan: Plan) -> dict[str, Any]:
    """What is needed to repeat the runs of a plan, as columns of a CSV file."""
    return {
        "seed": plan.setting.seed,
        **software(),
        "text_bytes": plan.text.num_bytes,
        "setting": plan.setting.describe(),
    }


def training_setup(plan: Plan, shared: str) -> list[tuple[str, str]]:
    """Set-up that the parts which train on text have in common: the text, and the training, ``shared`` by all runs."""
    setting, text = plan.setting, plan.text
    return [
        (
            "text",
            f"{text.num_bytes:,} bytes of English, the help texts of Python {platform.python_version()} (pydoc_data.topics); "
            f"the last {len(text.held_out):,} bytes are held out",
        ),
        (
            "training",
            f"{setting.steps} steps of {setting.batch} × {setting.length} bytes, on one thread; the same {shared} for all; "
            f"betas {BETAS}, no weight decay, learning rate warmed up over {setting.lr_warmup} steps, then a cosine to 10 %",
        ),
    ]


def percent(share: float, digits: int = 1) -> str:
    """A share in words: ``12.5 %``."""
    return f"{100 * share:.{digits}f} %"


def compared(value: float, reference: float, digits: int = 3) -> str:
    """How far a number lies from another, in words: ``0.120 below``, and ``incomparable to`` where one is NaN."""
    difference = round(value - reference, digits)
    if math.isnan(difference):
        return "incomparable to"
    return "equal to" if difference == 0 else f"{abs(difference):.{digits}f} {'above' if difference > 0 else 'below'}"
