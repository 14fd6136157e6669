"""What a ladder gains between two hosts: standard, ladder, hybrid and parallel models over links of three rates.

    make bench-two-hosts                  # as root; about 7 minutes on a machine that does nothing else
    python bench/two_hosts.py --quick     # a smoke test: the numbers mean nothing

Each host is a network namespace and one rank on a core of its own, and they talk gloo over a veth link of a given rate (tbf).
A sum takes at least a given time: network emulation of latency is not in every kernel, so the delayed communicator adds it.
gloo's threads come before the one that computes, as a network card would. All ways have the same weights (parallel: attention
and MLP of a layer side by side) and are run in turn. Branches compute (matrix products, on the core that gloo works on too) or
sleep, which shows the schedule alone. Ratios are taken round by round:

    communication = standard / none - 1        of the time without communication
    hidden        = (standard - ladder) / (standard - none)
    can be hidden = (1 - core / (standard - none)) * (1 - 1 / branches)

The last line is about what the one before could reach: ``core`` is what the communication takes of the core on which the rank
computes (threads of the rank; interrupts are not counted), which nothing hides, and behind the last branch nothing is left to
compute. It is no strict bound: the compute itself is slower after a wait, which counts as ``core`` too. Who sleeps leaves the
core: there it counts as 0. Two timelines of the prefill are drawn beside the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conftest import machine
from harness import Row, Spread, Target, write_csv
from two_hosts_link import TwoHosts, missing

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "two_hosts.csv"
QUICK = {"layers": 2, "hidden": 128, "tokens": 8, "sleep": 0.002}
BALANCED = (0.5, 1.0)  # communication of the compute, where the targets hold
SPEED_UP = {"decode": Target(">=", 1.25), "prefill": Target(">=", 1.25), "training": Target(">=", 1.2)}
HIDDEN = {"sleep": Target(">=", 0.8), "matmul": Target(">=", 0.6)}


class Link(NamedTuple):
    """How fast two hosts are joined."""

    rate: str  # as tc writes it
    latency: float  # seconds that a sum takes at least

    def __str__(self) -> str:
        return f"{self.rate}, sums >= {1e3 * self.latency:g} ms"


# From where communication is a fifth of compute to where it is about as long.
LINKS = (Link("1gbit", 0.003), Link("300mbit", 0.009), Link("200mbit", 0.014))


class Result(NamedTuple):
    """One workload on one link: seconds of each way, round by round."""

    compute: str
    workload: str
    link: Link
    times: dict[str, list[float]]
    core: dict[str, list[float]]  # seconds of it that the rank took
    branches: int

    def speed_up(self, way: str) -> Spread:
        """Of a way over the standard model."""
        return Spread.of([standard / other for standard, other in zip(self.times["standard"], self.times[way], strict=True)])

    @property
    def communication(self) -> Spread:
        """Time of the standard model's communication, of its compute."""
        return Spread(*(ratio - 1 for ratio in self.speed_up("none")))

    @property
    def hidden(self) -> Spread:
        """Share of the standard model's communication that the ladder hides."""
        rounds = zip(*(self.times[way] for way in ("standard", "ladder", "none")), strict=True)
        return Spread.of([(standard - ladder) / (standard - none) for standard, ladder, none in rounds])

    @property
    def hideable(self) -> Spread:
        """About what a ladder could hide, as the communication takes time of the core that computes."""
        rounds = zip(*(each[way] for way in ("standard", "none") for each in (self.times, self.core)), strict=True)
        taken = float(self.compute != "sleep")
        idle = [1 - taken * (core - alone) / (standard - none) for standard, core, none, alone in rounds]
        return Spread.of([share * (1 - 1 / self.branches) for share in idle])

    def rows(self) -> list[Row]:
        """Lines of the report; targets hold where communication and compute are balanced."""
        title = f"{self.workload}, {self.compute}, {self.link}"
        low, high = BALANCED
        balanced = low <= self.communication.median <= high
        speed_up, hidden = (SPEED_UP[self.workload], HIDDEN[self.compute]) if balanced else (None, None)
        step = Spread.of([1e3 * seconds for seconds in self.times["none"]])
        return [
            Row(title, "ms without communication", step),
            Row(title, "communication / compute", self.communication),
            Row(title, "standard / ladder", self.speed_up("ladder"), target=speed_up),
            Row(title, "standard / hybrid (last half)", self.speed_up("hybrid")),
            Row(title, "standard / parallel block", self.speed_up("parallel")),
            Row(title, "standard / no communication", self.speed_up("none")),
            Row(title, "hidden share of ladder", self.hidden, target=hidden),
            Row(title, "share that can be hidden", self.hideable),
        ]


HEADINGS = ("workload", "compute", "link", "comm/compute", "ladder", "hybrid", "parallel", "no comm", "hidden", "can be")


def table(results: Sequence[Result]) -> list[str]:
    """A line for each result: speed-ups over the standard model, median and quartiles."""
    lines: list[Sequence[str]] = [(*HEADINGS, "targets")]
    for result in results:
        speed_ups = [_spread(result.speed_up(way)) for way in ("ladder", "hybrid", "parallel", "none")]
        verdicts = [row.verdict for row in result.rows() if row.target]
        lines.append(
            [result.workload, result.compute, str(result.link), _spread(result.communication), *speed_ups,
             _spread(result.hidden), _spread(result.hideable), ", ".join(verdicts)]
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _spread(values: Spread) -> str:
    return f"{values.median:.2f} ({values.low:.2f}-{values.high:.2f})"


def run(options: argparse.Namespace) -> Iterable[Result]:
    """All results, on hosts that are gone afterwards."""
    with TwoHosts(HERE / "two_hosts_rank.py") as hosts:
        for link in LINKS:
            hosts.shape(link.rate)
            for workload in SPEED_UP:
                for compute in HIDDEN:
                    task = {"workload": workload, "compute": compute, "latency": link.latency, "rounds": options.rounds}
                    answer = hosts.ask({**task, "changes": QUICK if options.quick else {}})
                    yield Result(compute, workload, link, answer["seconds"], answer["core"], answer["branches"])
        if not options.quick:  # over the slowest link
            plots = {way: str(options.csv.with_name(f"two_hosts_{way}.png")) for way in ("standard", "ladder")}
            hosts.ask({"workload": "prefill", "compute": "matmul", "latency": link.latency, "changes": {}, "plots": plots})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, written nowhere")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="where to write the ratios (default: %(default)s)")
    parser.add_argument("--strict-targets", action="store_true", help="return 1 where a target is missed")
    options = parser.parse_args()
    reason = missing()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    options.rounds = 2 if options.quick else options.rounds
    where: dict[str, Any] = {**machine(), "threads": 1, "sizes": "quick" if options.quick else "full", "rounds": options.rounds}
    results = []
    for result in run(options):
        results.append(result)
        print(f"{result.workload}, {result.compute}, {result.link}", file=sys.stderr)
    results.sort(key=lambda result: (list(HIDDEN).index(result.compute), list(SPEED_UP).index(result.workload)))
    print(f"{where['cpu']}, {where['cores']} cores, one thread a rank; torch {where['torch version']}, gloo, {where['date']}")
    print("speed-ups over the standard model, medians (quartiles)")
    print("\n".join(table(results)))
    rows = [row for result in results for row in result.rows()]
    verdicts = [row.verdict for row in rows]
    print(f"{verdicts.count('met')} targets met, {verdicts.count('missed')} missed, where communication is "
          f"{BALANCED[0]:g} to {BALANCED[1]:g} of compute")  # fmt: skip
    if not options.quick:
        write_csv(options.csv, rows, where)
        print(f"written: {options.csv}")
    return int(options.strict_targets and "missed" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
