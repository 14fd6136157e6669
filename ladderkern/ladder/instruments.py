"""Communicators that record and delay those of others: for tests, and to see what overlaps."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from torch import Tensor

from .handles import Collective, Communicator, Handle


class Event(NamedTuple):
    """One line of a record."""

    kind: str  # "compute", "launch", "wait"
    name: Any  # the Collective
    seconds: float  # time.perf_counter()


class RecordingCommunicator(Communicator):
    """Notes in ``events`` when branches compute, and when their all-reduces are launched and have been waited for.

    Args:
        inner: what communicates; None for nobody: tensors are taken to be summed as they are.
    """

    def __init__(self, inner: Communicator | None = None) -> None:
        self.inner = inner
        self.group = inner.group if inner else None
        self.events: list[Event] = []

    def launch(self, tensor: Tensor, name: Any = "all-reduce") -> Handle:
        """As of the communicator inside."""
        self.note("launch", name)
        return Handle(tensor, name, self.inner.launch(tensor, name) if self.inner else tensor)

    def wait(self, handle: Handle) -> None:
        """As of the communicator inside."""
        work = handle.take()
        try:
            if self.inner:
                self.inner.wait(work)
        finally:
            self.note("wait", handle.name)

    def compute(self, name: Collective) -> None:
        """Note that the branch starts."""
        self.note("compute", name)
        if self.inner:
            self.inner.compute(name)

    def note(self, kind: str, name: Any) -> None:
        """Add an event, of this or any other kind, that happens now."""
        self.events.append(Event(kind, name, time.perf_counter()))


class Late(NamedTuple):
    """What a DelayedCommunicator keeps of an all-reduce."""

    inside: Handle
    due: float  # time.perf_counter()


class DelayedCommunicator(Communicator):
    """Adds latency, as of a slow link: sums take at least ``seconds`` each, one after another as on one stream.

    Until it is waited for, a tensor holds NaN, so that who reads it too early is found out. For tests: waits block the host.

    Args:
        inner: what communicates; None for nobody.
        seconds: of each all-reduce.
    """

    def __init__(self, inner: Communicator | None, seconds: float) -> None:
        self.inner = inner
        self.group = inner.group if inner else None
        self.seconds = seconds
        self._free = 0.0

    def launch(self, tensor: Tensor, name: Any = "all-reduce") -> Handle:
        """As of the communicator inside, on a copy."""
        copy = tensor.clone()
        tensor.fill_(float("nan"))
        self._free = max(self._free, time.perf_counter()) + self.seconds
        inside = self.inner.launch(copy, name) if self.inner else Handle(copy, name, copy)
        return Handle(tensor, name, Late(inside, self._free))

    def wait(self, handle: Handle) -> None:
        """Sleep until the sum is due."""
        inside, due = handle.take()
        if self.inner:
            self.inner.wait(inside)
        time.sleep(max(due - time.perf_counter(), 0.0))
        handle.tensor.copy_(inside.tensor)

    def compute(self, name: Collective) -> None:
        """Pass it on."""
        if self.inner:
            self.inner.compute(name)
