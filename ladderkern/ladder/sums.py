"""Sums over the ranks for what stands outside the overlapped stack: embedding, head, loss and shared heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduced(x: Tensor, group: Any, name: str, op: str = "sum") -> Tensor:
    """The sum (or ``op="max"``) of x over the group, in a new tensor; the current stream waits for it. Not differentiable.

    Raises:
        RuntimeError: with ``name``, if it fails.
    """
    if torch.compiler.is_compiling():
        return torch.ops._c10d_functional.wait_tensor(
            torch.ops._c10d_functional.all_reduce(x.contiguous(), op, group.group_name)
        )
    x = x.clone(memory_format=torch.contiguous_format)
    try:
        dist.all_reduce(x, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, group=group)
    except RuntimeError as error:
        raise RuntimeError(f"the {name} failed on rank {group.rank()} of a group of {group.size()}: {error}") from error
    return x


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, name: str) -> Tensor:
        ctx.group, ctx.name = group, name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_reduced(grad, ctx.group, f"all-reduce of the gradient of {ctx.name}"), None, None


class _SumOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, name: str) -> Tensor:
        return all_reduced(x, group, f"all-reduce of {name}")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def sum_gradients(x: Tensor, group: Any, name: str) -> Tensor:
    """x, the same on every rank, of which each rank uses another part: its gradient is the sum of theirs."""
    return _SumGradients.apply(x, group, name)


def sum_outputs(x: Tensor, group: Any, name: str) -> Tensor:
    """The sum of the ranks' x, which each rank uses alike: its gradient is that of the sum on every rank."""
    return _SumOutputs.apply(x, group, name)
