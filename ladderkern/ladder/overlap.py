"""All-reduces in flight around the branches of a ladder.

In the forward the sum of branch i is launched when the branch is done, and waited for where a stream needs it. The backward is
a ladder too. Three nodes of autograd stand around each branch:

    normed -> _AwaitGradient -> _LaunchGradient -> branch -> _LaunchOutput -> update

Going back, _LaunchGradient starts to sum the gradient of the branch's input and hands the unfinished sum to _AwaitGradient,
which waits. The engine runs, of the nodes that are ready, the one with the highest sequence number: the one created last. An
_AwaitGradient of stream n is given the number that was current when the output of branch n - 1 was launched, before any node of
branch n; so it comes after the backward of all branches from n on, and just before that of branch n - 1, which needs the sum. A
_LaunchGradient is given a number above all of its branch, so that weight gradients which can wait (column_linear) are computed
behind it. Each normed tensor has its own pair, so that no unfinished gradients meet in a sum of the engine's. The parameters of
a branch stay visible to autograd, and nothing here is inside a checkpoint around a branch: sums are not done twice.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .exchange import Local
from .handles import OBSERVER, Collective, Communicator, Handle

logger = logging.getLogger(__name__)


class Overlapped(Local):
    """All-reduces in flight while branches compute, in one forward and its backward.

    As a context manager, and by what it has the engine call at the end of a backward, it leaves none behind when an exception
    passes.
    """

    def __init__(self, communicator: Communicator) -> None:
        super().__init__()
        observer = OBSERVER.get()
        self.communicator = communicator if observer is None else observer(communicator)
        self.outputs: dict[int, Handle] = {}
        self.gradients: dict[int, Handle] = {}  # of the backward whose number is self.task
        self.task = -1
        self.order = {0: _last_node()}  # of each stream's _AwaitGradient nodes, in the engine
        self.entries: dict[int, Any] = {}  # _LaunchGradient nodes of branches that compute

    def __exit__(self, *exc: object) -> None:
        _abandon(self.communicator, self.outputs)
        self.updates.clear()
        self.entries.clear()

    def enter(self, branch: int, normed: Tensor, stream: int) -> Tensor:
        """As of Local; the gradient is summed while the branch before computes its own."""
        if torch.is_grad_enabled() and normed.requires_grad:
            normed = _AwaitGradient.apply(normed, self, branch)  # type: ignore[no-untyped-call]
            normed.grad_fn._set_sequence_nr(self.order[stream])  # type: ignore[union-attr]
            normed = _LaunchGradient.apply(normed, self, branch)  # type: ignore[no-untyped-call]
            self.entries[branch] = normed.grad_fn
        self.communicator.compute(Collective("forward", branch))
        return normed

    def launch(self, branch: int, partial: Tensor) -> None:
        """As of Local, and start the sum."""
        if branch in self.entries:  # it comes before what is left of the branch, such as weight gradients
            self.entries.pop(branch)._set_sequence_nr(torch.autograd._get_sequence_nr())
        self.updates[branch] = _LaunchOutput.apply(partial, self, branch)  # type: ignore[no-untyped-call]
        self.order[branch + 1] = _last_node()

    def wait(self, branch: int) -> Tensor:
        """As of Local."""
        self.communicator.wait(self.outputs.pop(branch))
        return self.updates.pop(branch)

    def launch_output(self, branch: int, partial: Tensor) -> Tensor:
        """The memory that is being filled with the sum of ``partial``."""
        handle = self.communicator.launch(_copy(partial), Collective("forward", branch))
        self.outputs[branch] = handle
        return handle.tensor.detach()  # autograd takes over what is returned; the communicator still writes to its own

    def launch_gradient(self, branch: int, grad: Tensor) -> Tensor:
        """The memory that is being filled with the sum of ``grad``."""
        if self.task != torch._C._current_graph_task_id():
            self.task, self.gradients = torch._C._current_graph_task_id(), {}
            end = _EndOfBackward(self.communicator, self.gradients)
            torch.autograd.Variable._execution_engine.queue_callback(end)  # type: ignore[attr-defined]
        handle = self.communicator.launch(_copy(grad), Collective("backward", branch))
        self.gradients[branch] = handle
        return handle.tensor

    def wait_gradient(self, branch: int) -> Tensor:
        """The gradient of the branch's input, summed."""
        handle = self.gradients.pop(branch)
        self.communicator.wait(handle)
        return handle.tensor


def _abandon(communicator: Communicator, handles: dict[int, Handle]) -> None:
    """Wait for what an exception has left in flight."""
    while handles:
        _, handle = handles.popitem()
        try:
            communicator.wait(handle)
        except RuntimeError as error:  # the exception is on its way
            logger.warning("after a failure: %s", error)


def _copy(tensor: Tensor) -> Tensor:
    """A tensor to sum in place: others may hold the one that came. One that still awaits a collective of its own waits here."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _last_node() -> int:
    """Sequence number of this thread's latest node."""
    return max(torch.autograd._get_sequence_nr() - 1, 0)


class _EndOfBackward:
    """A callback of the engine for the end of a backward. One that fails calls nobody, but drops its callbacks."""

    def __init__(self, communicator: Communicator, handles: dict[int, Handle]) -> None:
        self.communicator, self.handles = communicator, handles

    def __call__(self) -> None:
        pass

    def __del__(self) -> None:
        _abandon(self.communicator, self.handles)


class _AwaitGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, normed: Tensor, overlapped: Overlapped, branch: int) -> Tensor:
        ctx.overlapped, ctx.branch = overlapped, branch
        return normed.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.overlapped.wait_gradient(ctx.branch), None, None


class _LaunchGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, normed: Tensor, overlapped: Overlapped, branch: int) -> Tensor:
        ctx.overlapped, ctx.branch = overlapped, branch
        return normed.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.overlapped.launch_gradient(ctx.branch, grad), None, None


class _LaunchOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, overlapped: Overlapped, branch: int) -> Tensor:
        ctx.overlapped, ctx.branch = overlapped, branch
        return overlapped.launch_output(branch, partial)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.overlapped.communicator.compute(Collective("backward", ctx.branch))
        return grad, None, None
