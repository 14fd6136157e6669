"""A step of a model as two lanes a rank: when its branches compute, and when their sums are on the way."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from .comm import communicator
from .handles import OBSERVER, Collective
from .lanes import STEP, Lanes, Marks, read_lanes


class ModuleTimes(NamedTuple):
    """Seconds of one branch in one phase, all steps of a rank together."""

    phase: str  # "forward" or "backward"
    branch: int
    compute: float
    communication: float  # of the sum that follows: the output's, or that of the gradient of the input
    exposed: float  # of it, while nothing was computed


class Timeline:
    """What :func:`timeline` saw.

    Attributes:
        ranks: the :class:`Lanes` of each rank, in seconds from the start of its step. The ranks start as they leave a barrier,
            so that zero is the same instant but for the link's latency.
        rank: which of them this process is.
    """

    def __init__(self, ranks: tuple[Lanes, ...], rank: int, trace: dict[str, Any]) -> None:
        self.ranks = ranks
        self.rank = rank
        self._trace = trace

    @property
    def hidden_share(self) -> float:
        """Share of the time of all sums, of all ranks, during which their rank computed; NaN without sums.

        Who computes meanwhile may be slowed by the sum itself, which this does not show: compare the times of whole steps.
        """
        sums = [(lanes, interval) for lanes in self.ranks for interval in lanes.communication]
        total = sum(interval.end - interval.start for _, interval in sums)
        return 1 - sum(_seconds(lanes.exposed(interval)) for lanes, interval in sums) / total if total else float("nan")

    def modules(self, rank: int | None = None) -> list[ModuleTimes]:
        """Times of each branch of a rank, by default this one: the forward's in order, then the backward's."""
        lanes = self.ranks[self.rank if rank is None else rank]
        times: dict[Collective, list[float]] = {}
        for interval in lanes.compute:
            if interval.name is not None:
                times.setdefault(interval.name, [0.0, 0.0, 0.0])[0] += interval.end - interval.start
        for interval in lanes.communication:
            if interval.name is not None:
                entry = times.setdefault(interval.name, [0.0, 0.0, 0.0])
                entry[1] += interval.end - interval.start
                entry[2] += _seconds(lanes.exposed(interval))
        forward = sorted(name for name in times if name.phase == "forward")
        order = forward + sorted((name for name in times if name.phase != "forward"), reverse=True)
        return [ModuleTimes(*name, *times[name]) for name in order]

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """A Chrome trace, for Perfetto or chrome://tracing: all that this rank's profiler saw, and the lanes of every rank."""
        step = next(event for event in self._trace["traceEvents"] if event.get("name") == STEP)
        lanes = [event for rank, lanes in enumerate(self.ranks) for event in _lane_events(rank, lanes, step["ts"])]
        Path(path).write_text(json.dumps({**self._trace, "traceEvents": [*self._trace["traceEvents"], *lanes]}))

    def write_plot(self, path: str | os.PathLike[str]) -> None:
        """A picture of the lanes, in the format of the path's suffix. Needs matplotlib."""
        from .lanes_plot import write_lanes

        write_lanes(self, Path(path))

    def __str__(self) -> str:
        lines = [f"{'phase':<9}{'branch':>6}{'compute ms':>12}{'sum ms':>9}{'exposed ms':>12}"]
        for phase, branch, *seconds in self.modules():
            compute, communication, exposed = (f"{1e3 * value:.3f}" for value in seconds)
            lines.append(f"{phase:<9}{branch:>6}{compute:>12}{communication:>9}{exposed:>12}")
        step = f"step {1e3 * self.ranks[self.rank].seconds:.3f} ms on rank {self.rank}"
        return "\n".join([*lines, f"{step}; hidden share of the communication on all ranks: {self.hidden_share:.0%}"])


def timeline(fn: Callable[[], Any], *, group: Any = None, warmup: int = 1) -> Timeline:
    """Run a step under torch.profiler and see what its all-reduces hide behind, on gloo ranks as on NCCL's.

    Every :class:`LadderStack` that ``fn`` runs is seen: the forward of each branch, its backward if there is one, and their
    sums. So is what a compiled model does through functional collectives, as one without branches. Collectives that others
    launch are shown, but not counted, since nothing tells who waits for them. A replayed CUDA graph is a single launch, which
    tells nothing of branches: run the step without it.

    Args:
        fn: a step, called with nothing, by all ranks of the group: a forward, a training step, a step of decoding.
        group: as of LadderStack; whose ranks' lanes are put together. None: this rank's alone.
        warmup: how often ``fn`` is called before: first calls connect, compile and allocate.

    Raises:
        TypeError, ValueError: a group that is none, ``warmup`` below 0, or what ``fn`` raises.

    >>> seen = ladderkern.ladder.timeline(lambda: model(tokens).logits, group=mesh["tp"])
    >>> print(seen)
    >>> seen.write_plot("step.png"), seen.write_trace("step.json")
    """
    if not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"warmup must be an int of at least 0, got {warmup!r}")
    inner = communicator(group)
    ranks = None if inner is None else inner.group
    for _ in range(warmup):
        fn()
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        _synchronize(cuda)
        if ranks is not None:
            dist.barrier(ranks)
        token = OBSERVER.set(Marks)
        try:
            with record_function(STEP):
                fn()
        finally:
            OBSERVER.reset(token)
        _synchronize(cuda)
    trace = _exported(profiler)
    own = read_lanes(trace["traceEvents"])
    if ranks is None:
        return Timeline((own,), 0, trace)
    everyone: list[Any] = [None] * ranks.size()
    dist.all_gather_object(everyone, own, group=ranks)
    return Timeline(tuple(everyone), ranks.rank(), trace)


def _seconds(spans: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)


def _synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _exported(profiler: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text())
    return trace


def _lane_events(rank: int, lanes: Lanes, zero: float) -> list[dict[str, Any]]:
    """Lanes as two threads of a process of their own in a Chrome trace whose clock is ``zero`` microseconds at the start."""
    rows = [("compute", lanes.compute), ("communication", lanes.communication), ("others' collectives", lanes.other)]
    return [
        {
            "ph": "X",
            "cat": "ladder",
            "name": row if interval.name is None else f"{interval.name.phase} {interval.name.branch}",
            "pid": f"rank {rank}",
            "tid": row,
            "ts": zero + 1e6 * interval.start,
            "dur": 1e6 * (interval.end - interval.start),
        }
        for row, intervals in rows
        for interval in intervals
    ]
