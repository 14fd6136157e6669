"""A linear layer at the entry of a branch, whose weight gradient hides the all-reduce of its input's gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def column_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, for the layers that read what a :class:`LadderStack` hands to a branch.

    The gradient of the weight is a node of autograd of its own, which runs after all such layers of the branch have passed on
    the gradient of x: the stack launches its all-reduce in between. Values and gradients are those of ``F.linear``;
    differentiable once. Compiled code keeps ``F.linear``.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features]; this rank's rows of a column-parallel layer.
        bias: [out_features].

    Source: the order in time is Megatron-LM's (Narayanan et al. 2021, arXiv 2104.04473), within one layer.

    >>> ladderkern.ladder.column_linear(torch.ones(1, 3), torch.ones(2, 3))
    tensor([[3., 3.]])
    """
    if torch.compiler.is_compiling() or x.grad_fn is None or not (torch.is_grad_enabled() and weight.requires_grad):
        return F.linear(x, weight, bias)
    entry = x.grad_fn
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    shared: list[tuple[Tensor, Tensor]] = []
    later = _WeightGradient.apply(weight, shared)  # type: ignore[no-untyped-call]
    # Just above the node that made x: after every node of the branch, but before a module around it takes its weights for done
    # (FSDP, when the gradient of its input is there).
    later.grad_fn._set_sequence_nr(entry._sequence_nr() + 1)
    return _Product.apply(x, later, bias, shared)  # type: ignore[no-untyped-call, no-any-return]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, shared: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.shared = shared
        return weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, stand_in: Tensor) -> tuple[Tensor, None]:
        x, grad = ctx.shared.pop()
        return _rows(grad).t() @ _rows(x), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shared: list[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shared = shared
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        ctx.shared[:] = [(x, grad)]
        grad_bias = _rows(grad).sum(0) if ctx.needs_input_grad[2] else None
        return grad @ weight, weight.new_zeros(()).expand_as(weight), grad_bias, None
