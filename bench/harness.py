"""How peers are timed together, and how a ratio becomes a line of the report.

Peers of one comparison run in one process, in turn, in an order that rotates. The speed of a large optimizer depends on
where its memory happens to lie (whichever is built first may run a quarter faster), so the whole set is built again and
again, each time in another order, and beside each ratio stands a control: one optimizer built twice, which should be 1.
"""

from __future__ import annotations

import csv
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


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


def _orders(names: Sequence[str]) -> Iterable[list[str]]:
    """Endless rotations, every other one reversed, so that over time each comes before each other equally often."""
    for i in itertools.count():
        turn = i // 2 % len(names)
        order = [*names[turn:], *names[:turn]]
        yield order if i % 2 == 0 else order[::-1]


def measure(builders: dict[str, Callable[[], Any]], plan: Plan) -> Measured:
    """Build, settle and time the peers ``plan.rebuilds`` times over.

    A builder returns an object with ``prepare()`` and ``step()``; only ``step`` is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in builders}
    creation, calls = _orders(list(builders)), _orders(list(builders))
    peers: dict[str, Any] = {}
    for _ in range(plan.rebuilds):
        peers.clear()
        gc.collect()
        for name in next(creation):
            peers[name] = builders[name]()
        for peer in peers.values():
            _sample(peer, Plan(1, 1, steps=2))
        for _ in range(plan.rounds):
            for name in next(calls):
                times[name].append(_sample(peers[name], plan))
    return Measured(times, peers)


def _sample(peer: Any, plan: Plan) -> float:
    time.sleep(0.01)  # the threads of the peer before may still be spinning
    elapsed = 0.0
    for i in range(-plan.untimed, plan.steps):
        peer.prepare()
        start = time.perf_counter()
        peer.step()
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
    """Write the lines, each with the versions and the machine in ``where``."""
    records = [{**row.record(), **where} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
