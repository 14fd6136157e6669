"""Residual branches whose outputs reach the stream late, so that their all-reduces hide behind compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .capture import check_graphs_are_whole
from .comm import communicator
from .exchange import Local, Traced
from .norm import add_rms_norm, rms_norm
from .overlap import Overlapped
from .schedule import Join, delays, schedule


class LadderStack(nn.Module):
    """``x_i = x_{i-1} + AllReduce(h_i(x_{i-1-d_i}))`` for i = 1 ... M, where h_i is a branch behind its own RMS norm.

    With a delay of 0 (d_i) a branch reads all of the stream: the standard transformer. With 1, the ladder, it reads the stream
    without the output of the branch directly before it, which is summed over the ranks meanwhile; with more, it reads an older
    one. The stream itself is always complete; an index below 0 reads x_0. Delays may differ from branch to branch.

    Args:
        branches: modules with ``norm_weight`` [hidden], ``eps``, and ``forward(normed, *args, **kwargs)``, which returns this
            rank's part of the output: the sum over the ranks is the output of the whole branch. An addend that is the same on
            every rank, such as a bias, must be in one rank's part alone.
        delay: an int, or one for each branch.
        group: a ProcessGroup, a DeviceMesh of one dimension, or a :class:`ladderkern.ladder.Communicator`, whose ranks hold the
            parts. None: no communication, even if torch.distributed is initialised.

    The stack sums the outputs over the ranks in the forward, and in the backward the gradients of what branches read. The
    all-reduce of a branch is launched when it is done, and waited for where its sum is needed. Gradients of norm weights are
    then the same on every rank; those of tensors that branches get as other arguments are each rank's own part. Branches may be
    checkpointed (torch.utils.checkpoint inside their forward, not reentrant): all-reduces are not done again. Layers that read
    what a branch is given may be :func:`column_linear`, so that the all-reduce of its gradient hides behind their weights' too.

    A whole stack compiles with ``fullgraph=True`` and gives the same numbers, but the compiler decides what overlaps; see
    :meth:`compile_branches`. Differentiable once where it communicates.

    A CUDA graph may hold whole calls, forward and backward, that have run at least once before, captured with
    ``capture_error_mode="thread_local"``. A sum that would cross the border of a capture is an error
    (``ladderkern/ladder/capture.py`` has all the rules).

    Raises:
        TypeError, ValueError: a delay or a group that is none of these.

    Source: Zhang et al. 2025 (arXiv 2501.06589); that the backward is a ladder too follows from the equation.

    >>> stack = ladderkern.ladder.LadderStack([attention0, mlp0, attention1, mlp1], delay=1, group=mesh["tp"])
    >>> x = final_norm(stack(embedding(tokens)))
    """

    def __init__(self, branches: Iterable[nn.Module], delay: int | Sequence[int] = 1, group: Any = None) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.delay = delays(delay, len(self.branches))
        self.communicator = communicator(group)
        inner = None if self.communicator is None else self.communicator.group
        self._group_name = None if inner is None else inner.group_name
        self._schedule = schedule(self.delay)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run all branches; each is called with its normed stream and the other arguments.

        Args:
            x: [..., hidden], the same on every rank.

        Returns:
            The stream after the last branch, with all outputs, not normed.  [..., hidden]

        Raises:
            ValueError: a branch returns another shape or a tensor on another device, naming it.
            RuntimeError: an all-reduce failed, naming it. Those in flight are waited for before any exception leaves.
        """
        normed: dict[int, Tensor] = {}
        with self._exchange() as exchange:
            for i, branch in enumerate(self.branches):
                for join in self._schedule.joins[i]:
                    x, norms = self._join(join, x, [exchange.wait(j) for j in join.updates])
                    normed.update(norms)
                    self.formed(self._schedule.sources[join.readers[0]], x, *args, **kwargs)
                partial = branch(exchange.enter(i, normed.pop(i), self._schedule.sources[i]), *args, **kwargs)
                _check_output(i, partial, x)
                exchange.launch(i, partial)
                del partial
            for i in self._schedule.drain:
                x = x + exchange.wait(i)
        return x

    def formed(self, stream: int, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """For subclasses: told each stream that branches read, the one after ``stream`` branches, with forward's arguments."""

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the whole stack: :meth:`torch.nn.Module.compile`.

        Raises:
            ValueError: a mode that makes CUDA graphs, without ``fullgraph=True``, for a stack that communicates.
        """
        if self.communicator is not None:
            check_graphs_are_whole(options.get("fullgraph", False), options.get("mode"), options.get("options"))
        super().compile(*args, **options)  # type: ignore[no-untyped-call]

    def compile_branches(self, **options: Any) -> None:
        """Compile each branch, with these options of ``torch.compile``; the loop around them stays eager and overlaps."""
        for branch in self.branches:
            branch.compile(**options)

    def extra_repr(self) -> str:
        """Shown by repr."""
        return f"delay={self.delay}, group={self._group_name}"

    def _exchange(self) -> Local:
        if self.communicator is None:
            return Local()
        if torch.compiler.is_compiling():
            return Local() if self._group_name is None else Traced(self._group_name)
        return Overlapped(self.communicator)

    def _join(self, join: Join, x: Tensor, updates: list[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        """The sum of x and the updates, and its norm for each reader."""
        for early in updates[:-2]:
            x = x + early
        update, update2 = (*updates[-2:], None, None)[:2]
        norms: dict[int, Any] = {i: self.branches[i] for i in join.readers}
        first, *rest = norms
        branch = norms[first]
        twin = next((i for i in rest if _same_norm(norms[i], branch)), None)
        if twin is not None:  # one pass gives both
            weights = {"weight": branch.norm_weight, "weight2": norms[twin].norm_weight}
            a, b, x = add_rms_norm(x, update, eps=branch.eps, update2=update2, **weights)  # type: ignore[misc]
            normed = {first: a, twin: b}
        elif update is not None:
            a, x = add_rms_norm(x, update, branch.norm_weight, branch.eps, update2=update2)  # type: ignore[misc]
            normed = {first: a}
        else:
            normed = {first: rms_norm(x, branch.norm_weight, branch.eps)}
        return x, normed | {i: rms_norm(x, norms[i].norm_weight, norms[i].eps) for i in rest if i != twin}


def _same_norm(a: Any, b: Any) -> bool:
    return bool(a.eps == b.eps and a.norm_weight.dtype == b.norm_weight.dtype)


def _check_output(branch: int, partial: Any, x: Tensor) -> None:
    if not isinstance(partial, Tensor) or partial.shape != x.shape:
        got = tuple(partial.shape) if isinstance(partial, Tensor) else type(partial).__name__
        raise ValueError(f"branch {branch} must return a tensor of the shape of the stream, {tuple(x.shape)}, got {got}")
    if partial.device != x.device:
        raise ValueError(f"branch {branch} must return a tensor on the device of the stream, {x.device}, got {partial.device}")
