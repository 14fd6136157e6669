"""The all-reduce of row-parallel layers as two ops that compile, and what a ladder uses when it is traced.

``all_reduce_start(partial, group_name)`` returns a tensor that is being filled with the sum over the ranks of the group;
``all_reduce_wait`` of it returns the sum. The gradient is the identity, for the output of a row-parallel layer is summed but
every rank goes on with the same sum: the backward of PyTorch's functional all-reduce would sum once more, and multiply the
gradient by the number of ranks. What all_reduce_start returns is good for all_reduce_wait alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.library import LIBRARY, NAMESPACE, OPS, Op


def start(partial: Tensor, group_name: str) -> Tensor:
    """A new tensor that is being filled with the sum of ``partial`` over the ranks."""
    pending: Tensor = torch.ops._c10d_functional.all_reduce(partial.contiguous(), "sum", group_name)
    return pending


def wait(pending: Tensor) -> Tensor:
    """The same memory, filled."""
    summed: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return summed


def _fake_start(partial: Tensor, group_name: str) -> Tensor:
    return torch.empty_like(partial, memory_format=torch.contiguous_format)


def _copying_wait(pending: Tensor) -> Tensor:
    # An op must not return its input's memory: compilers and opcheck rely on it. A LadderStack does not pay for this copy.
    return wait(pending).clone()


def _define(name: str, schema: str, implementation: Any, fake: Any) -> None:
    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    default = getattr(getattr(torch.ops, NAMESPACE), name).default
    OPS[name] = Op(name, default, default, None, ("reference",))


_define("all_reduce_start", "(Tensor partial, str group_name) -> Tensor", start, _fake_start)
_define("all_reduce_wait", "(Tensor pending) -> Tensor", _copying_wait, torch.empty_like)
torch.library.register_autograd(f"{NAMESPACE}::all_reduce_start", lambda ctx, grad: (grad, None), lib=LIBRARY)
torch.library.register_autograd(f"{NAMESPACE}::all_reduce_wait", lambda ctx, grad: grad, lib=LIBRARY)


class StartSum(torch.autograd.Function):
    """:func:`start` with the identity as its gradient."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, group_name: str) -> Tensor:
        return start(partial, group_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


class FinishSum(torch.autograd.Function):
    """:func:`wait` with the identity as its gradient."""

    @staticmethod
    def forward(ctx: Any, pending: Tensor) -> Tensor:
        return wait(pending)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class SumGradient(torch.autograd.Function):
    """The identity, whose gradient is summed over the ranks: the input of a column-parallel layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return wait(start(grad, ctx.group_name)), None
