"""How peers are timed together, and how a ratio becomes a line of the report.

Peers of one comparison run in one process, in turn, in an order that rotates. The speed of a large optimizer depends on
where its memory happens to lie (whichever is built first may run a quarter faster), so the whole set is built again and
again, each time in another order, and beside each ratio stands a control: one optimizer built twice, which should be 1.
"""

from __future__ import annotations

import csv
import ctypes
import datetime
import gc
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ..runtime.info import info
from ..runtime.machine import processor

# glibc's mallopt: without these every large tensor is fresh pages, and page faults drown what is measured.
_MALLOC = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20)}


class Timed(Protocol):
    """What is timed: ``prepare`` comes before each ``step`` and is not timed."""

    def prepare(self) -> None:
        """Whatever a step needs anew."""

    def step(self) -> Any:
        """What is timed."""


class Plan(NamedTuple):
    """How often one comparison is repeated."""

    rebuilds: int
    rounds: int
    steps: int = 1  # timed together, as one sample
    untimed: int = 0  # steps just before a sample, which wake the threads


class Target(NamedTuple):
    """What a quantity should be: relation is "<=" or ">="."""

    relation: str
    value: float

    def met(self, value: float) -> bool:
        """Whether a value reaches the target."""
        return value <= self.value if self.relation == "<=" else value >= self.value

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of some values; a single one has none."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


class Measured:
    """The samples of one comparison: as many rounds of every peer, in step with each other."""

    def __init__(self, times: dict[str, list[float]], last: dict[str, Any]) -> None:
        self.times, self.last = times, last

    def ratio(self, name: str, anchor: str) -> Spread:
        """Time of one peer over that of another, round by round."""
        return Spread.of([a / b for a, b in zip(self.times[name], self.times[anchor], strict=True)])


def _orders(names: Sequence[str]) -> Iterator[list[str]]:
    """Endless rotations, every other one reversed, so that over time each comes before each other equally often."""
    for i in itertools.count():
        turn = i // 2 % len(names)
        order = [*names[turn:], *names[:turn]]
        yield order if i % 2 == 0 else order[::-1]


def measure(
    builders: dict[str, Callable[[], Timed]],
    plan: Plan,
    *,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    synchronize: Callable[[], None] = lambda: None,
) -> Measured:
    """Build, settle and time the peers ``plan.rebuilds`` times over, in one process, in turn.

    Args:
        builders: by name, what makes a peer: an object with ``prepare()`` and ``step()``; only ``step`` is timed.
        plan: how often.
        progress: wraps what is iterated over, a round of all peers at a time, as ``tqdm`` does.
        synchronize: waits for the device, before and after each step: ``torch.cuda.synchronize`` on a GPU.
    """
    times: dict[str, list[float]] = {name: [] for name in builders}
    creation, calls = _orders(list(builders)), _orders(list(builders))
    peers: dict[str, Timed] = {}
    for i in progress(range(plan.rebuilds * plan.rounds)):
        if i % plan.rounds == 0:
            peers.clear()
            gc.collect()
            for name in next(creation):
                peers[name] = builders[name]()
            for peer in peers.values():
                _sample(peer, Plan(1, 1, steps=2), synchronize)
        for name in next(calls):
            times[name].append(_sample(peers[name], plan, synchronize))
    return Measured(times, peers)


def _sample(peer: Timed, plan: Plan, synchronize: Callable[[], None]) -> float:
    time.sleep(0.01)  # the threads of the peer before may still be spinning
    elapsed = 0.0
    for i in range(-plan.untimed, plan.steps):
        peer.prepare()
        synchronize()
        start = time.perf_counter()
        peer.step()
        synchronize()
        elapsed += (time.perf_counter() - start) if i >= 0 else 0.0
    return elapsed


class Row(NamedTuple):
    """One line of the report."""

    comparison: str
    quantity: str
    value: Spread
    control: Spread | None = None
    share: float | None = None  # of the memory limit: least traffic at the plain loop's bandwidth, over the time taken
    target: Target | None = None

    @property
    def verdict(self) -> str:
        """ "met", "missed", or nothing where there is no target."""
        if self.target is None:
            return ""
        return "met" if self.target.met(self.value.median) else "missed"

    def cells(self) -> tuple[str, ...]:
        """The line as text, a cell a column of ``HEADINGS``."""
        share = "" if self.share is None else f"{100 * self.share:.0f} %"
        return (
            self.comparison,
            self.quantity,
            _figure(self.value.median),
            f"{_figure(self.value.low)} - {_figure(self.value.high)}",
            "" if self.control is None else f"{self.control.median:.3f}",
            share,
            str(self.target or ""),
            self.verdict,
        )

    def record(self) -> dict[str, Any]:
        """The line as numbers, for CSV and for pytest-benchmark's JSON."""
        control = self.control and dict(zip(("control", "control_q1", "control_q3"), self.control, strict=True))
        return {
            "comparison": self.comparison,
            "quantity": self.quantity,
            "median": self.value.median,
            "q1": self.value.low,
            "q3": self.value.high,
            **(control or dict.fromkeys(("control", "control_q1", "control_q3"))),
            "share_of_limit": self.share,
            "target": str(self.target or ""),
            "verdict": self.verdict,
        }


HEADINGS = ("comparison", "ratio of", "median", "quartiles", "control", "of limit", "target", "")


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def table(rows: Sequence[Row]) -> list[str]:
    """All lines under their headings, in columns."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def write_csv(path: Path, rows: Sequence[Row], where: dict[str, Any]) -> None:
    """Write the lines, each with the versions and the machine in ``where`` (:func:`machine`)."""
    records = [{**row.record(), **where} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def machine(peers: Sequence[str] = ()) -> dict[str, Any]:
    """Where numbers come from: processor, threads, tier, and the versions of all that runs.

    Args:
        peers: packages whose versions matter too, by the names that pip knows.
    """
    status = info()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native": status["native"],
        "backend": status["backend"],
        "ladderkern version": status["ladderkern"],
        "torch version": torch.__version__,
        **{f"{name} version": _version(name) for name in peers},
        "python version": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def keep_freed_memory() -> str:
    """Let glibc keep what is freed, for the rest of the process; returns what was set, or why nothing could be."""
    if platform.libc_ver()[0] != "glibc":
        return "allocator as it is: mallopt needs glibc"
    mallopt = ctypes.CDLL(None).mallopt
    done = {name: mallopt(*setting) == 1 for name, setting in _MALLOC.items()}
    return "mallopt for all peers: " + ", ".join(
        f"{name}={_MALLOC[name][1]}{'' if accepted else ' REFUSED'}" for name, accepted in done.items()
    )
