"""When branches compute and when their sums are on the way, read from a trace of torch.profiler.

:class:`Marks` leaves user annotations in the trace: one when a branch starts, and one around each launch and each wait. Host
time between them belongs to the branch that started last, or after a wait to none. On a device each kernel belongs to what the
host was at when it launched the kernel (the trace ties both by a correlation number): kernels of a launch communicate, all
others compute. Functional collectives need no marks: their ops are in the trace.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor
from torch.profiler import record_function

from .handles import Collective, Communicator, Handle
from .instruments import Late

STEP, COMPUTE, LAUNCH, WAIT, DUE = (f"ladder::{kind}" for kind in ("step", "compute", "launch", "wait", "due"))
_FUNCTIONAL = {
    "_c10d_functional::all_reduce": LAUNCH,
    "_c10d_functional::all_reduce_": LAUNCH,
    "_c10d_functional::wait_tensor": WAIT,
}
_HOST, _DEVICE = ("cpu_op", "user_annotation"), ("kernel", "gpu_memcpy", "gpu_memset")


class Interval(NamedTuple):
    """A stretch of time, in seconds from the start of the step."""

    name: Collective | None  # the branch's all-reduce; None: of no branch, as embedding, head, loss and sums of streams
    start: float
    end: float


class Lanes(NamedTuple):
    """What one rank did in a step: sums that the step waits for, and collectives of others, which are not counted."""

    seconds: float
    compute: tuple[Interval, ...]
    communication: tuple[Interval, ...]
    other: tuple[Interval, ...]
    device: bool

    def exposed(self, communication: Interval) -> list[tuple[float, float]]:
        """The parts of a communication, start and end of each, during which nothing was computed."""
        gaps, reached = [], communication.start
        for interval in self.compute:  # sorted by start
            if interval.start >= communication.end:
                break
            gaps.append((reached, interval.start))
            reached = max(reached, interval.end)
        gaps.append((reached, communication.end))
        return [(start, end) for start, end in gaps if end > start]


class Marks(Communicator):
    """Annotates what it hands on to another communicator."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.group = inner, inner.group

    def launch(self, tensor: Tensor, name: Any = "all-reduce") -> Handle:
        """As of the communicator inside."""
        with record_function(_mark(LAUNCH, name)):
            handle = self.inner.launch(tensor, name)
        due = _due(handle)
        if due is not None:
            _note(f"{DUE} {due - time.perf_counter():.9f}")
        return handle

    def wait(self, handle: Handle) -> None:
        """As of the communicator inside."""
        with record_function(_mark(WAIT, handle.name)):
            self.inner.wait(handle)

    def compute(self, name: Collective) -> None:
        """Mark that the branch starts."""
        _note(_mark(COMPUTE, name))
        self.inner.compute(name)


def _mark(kind: str, name: Any) -> str:
    return f"{kind} {name.phase} {name.branch}" if isinstance(name, Collective) else kind


def _note(text: str) -> None:
    with record_function(text):
        pass


def _due(handle: Handle) -> float | None:
    """When a delayed sum will be there, by time.perf_counter: no profiler sees the delay."""
    work = handle.work
    while isinstance(work, Handle):
        work = work.work
    return work.due if isinstance(work, Late) else None


class _Call(NamedTuple):
    kind: str
    name: Collective | None
    start: float
    end: float
    seconds: float = 0.0  # of DUE


class _State(NamedTuple):
    start: float
    kind: str
    name: Collective | None


def read_lanes(events: Iterable[dict[str, Any]]) -> Lanes:
    """The lanes of the step that is marked in the ``traceEvents`` of a Chrome trace of torch.profiler.

    Raises:
        ValueError: no step is marked.
    """
    timed = sorted((event for event in events if event.get("ph") == "X"), key=itemgetter("ts"))
    step = next((event for event in timed if event["name"] == STEP and event["cat"] == "user_annotation"), None)
    if step is None:
        raise ValueError("events must be those of a trace in which timeline has marked a step")
    zero, end = step["ts"], step["ts"] + step["dur"]
    within = [event for event in timed if zero <= event["ts"] <= end or event.get("cat") in _DEVICE]
    calls = [call for event in within if event.get("cat") in _HOST and (call := _call(event, zero))]
    states = _states(calls)
    kernels = _kernels(within, states, zero)
    if kernels is not None:
        last = max((interval.end for intervals in kernels for interval in intervals), default=0.0)
        return Lanes(max(last, _seconds(step["dur"])), *kernels, device=True)
    seconds = _seconds(step["dur"])
    ends = [state.start for state in states[1:]] + [seconds]
    compute = [Interval(s.name, s.start, e) for s, e in zip(states, ends, strict=True) if s.kind == COMPUTE and s.start < e]
    works = [_interval(None, event, zero) for event in within if event["name"].startswith("gloo:")]
    return Lanes(seconds, tuple(compute), *_matched(calls, works), device=False)


def _seconds(microseconds: float) -> float:
    return microseconds * 1e-6


def _interval(name: Collective | None, event: dict[str, Any], zero: float) -> Interval:
    return Interval(name, _seconds(event["ts"] - zero), _seconds(event["ts"] + event["dur"] - zero))


def _call(event: dict[str, Any], zero: float) -> _Call | None:
    _, start, end = _interval(None, event, zero)
    kind, *rest = event["name"].split(" ")
    if kind in _FUNCTIONAL:
        return _Call(_FUNCTIONAL[kind], None, start, end)
    if kind == DUE:
        return _Call(kind, None, start, end, float(rest[0]))
    if kind not in (COMPUTE, LAUNCH, WAIT):
        return None
    return _Call(kind, Collective(rest[0], int(rest[1])) if rest else None, start, end)


def _states(calls: Sequence[_Call]) -> list[_State]:
    """What the host is at, and since when."""
    states, branch = [_State(0.0, COMPUTE, None)], None
    for call in calls:
        if call.kind == COMPUTE:
            branch = call.name
            states.append(_State(call.start, COMPUTE, branch))
        elif call.kind != DUE:
            branch = None if call.kind == WAIT else branch
            states += [_State(call.start, call.kind, call.name), _State(call.end, COMPUTE, branch)]
    return states


def _matched(calls: Sequence[_Call], works: Sequence[Interval]) -> tuple[tuple[Interval, ...], tuple[Interval, ...]]:
    """Sums of the calls with their times, and what is left of the works: the workers take sums in the order of their launch."""
    waiting: list[_Call] = []
    found: dict[_Call, Interval] = {}
    other = []
    coming: list[_Call | Interval] = [*(call for call in calls if call.kind == LAUNCH), *works]
    for item in sorted(coming, key=lambda item: item.start):
        if isinstance(item, _Call):
            waiting.append(item)
        elif waiting:
            found[waiting.pop(0)] = item
        else:
            other.append(item)
    sums, free, launch = [], 0.0, None
    for call in calls:
        if call.kind == LAUNCH:
            launch = call
        elif call.kind == DUE and launch is not None:  # one after another
            due = call.start + call.seconds
            work = found.get(launch)
            found[launch] = Interval(None, max(launch.start, free), max(due, work.end if work else due))
            free = due
    for call in calls:
        if call in found:
            sums.append(found[call]._replace(name=call.name))
    return tuple(sums), tuple(other)


def _kernels(
    events: Sequence[dict[str, Any]], states: Sequence[_State], zero: float
) -> tuple[tuple[Interval, ...], tuple[Interval, ...], tuple[Interval, ...]] | None:
    """Compute, communication and others' collectives on the device; None if nothing ran there."""
    launches = {
        event["args"]["correlation"]: _seconds(event["ts"] - zero)
        for event in events
        if event.get("cat") not in _DEVICE and "correlation" in event.get("args", {})
    }
    starts = [state.start for state in states]
    compute, communication, other = [], [], []
    for event in events:
        launched = launches.get(event.get("args", {}).get("correlation")) if event.get("cat") in _DEVICE else None
        if launched is None:
            continue
        state = states[bisect.bisect_right(starts, launched) - 1]
        interval = _interval(state.name, event, zero)
        if state.kind == LAUNCH:
            communication.append(interval)
        elif "nccl" in event["name"].lower():
            other.append(interval)
        else:
            compute.append(interval if state.kind == COMPUTE else interval._replace(name=None))
    return (tuple(compute), tuple(communication), tuple(other)) if compute or communication else None
