"""What a ladder asks of whoever sums tensors over ranks: launch, and wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

from .capture import capturing, check_same_region


class Collective(NamedTuple):
    """Which all-reduce: of a branch's output in the forward, of the gradient of its normed input in the backward."""

    phase: str  # "forward" or "backward"
    branch: int

    def __str__(self) -> str:
        what = "output" if self.phase == "forward" else "gradient of the input"
        return f"{self.phase} all-reduce of the {what} of branch {self.branch}"


class Handle:
    """An all-reduce in flight. ``tensor`` must not be touched until the communicator that launched it has waited for it."""

    def __init__(self, tensor: Tensor, name: Any, work: Any) -> None:
        self.tensor = tensor
        self.name = name
        self.work = work
        self.captured = capturing(tensor)

    def take(self) -> Any:
        """What the communicator keeps of the work, once.

        Raises:
            RuntimeError: it was waited for already, or was launched on the other side of a CUDA graph capture.
        """
        if self.work is None:
            raise RuntimeError(f"the {self.name} was waited for already")
        check_same_region(self.name, self.captured, capturing(self.tensor))
        work, self.work = self.work, None
        return work


class Communicator(ABC):
    """Sums tensors over the ranks of a group, asynchronously and in place. Every handle is waited for exactly once.

    On a device neither call waits on the host: ``wait`` orders the current stream after the sum.
    """

    group: Any = None

    def __deepcopy__(self, memo: Any) -> Communicator:
        return self  # the copy of a model speaks to the same ranks

    @abstractmethod
    def launch(self, tensor: Tensor, name: Any = "all-reduce") -> Handle:
        """Start summing a contiguous tensor; ``name`` stands in error messages and records."""

    @abstractmethod
    def wait(self, handle: Handle) -> None:
        """Return when ``handle.tensor`` holds the sum (on a device: for what the current stream runs from here on)."""

    def compute(self, name: Collective) -> None:  # noqa: B027 - who only communicates need not know
        """Told when a branch is about to compute; ``name`` is the all-reduce that follows."""


# What overlapped stacks put around their communicator in each forward, for who watches.
OBSERVER: ContextVar[Callable[[Communicator], Communicator] | None] = ContextVar("OBSERVER", default=None)
