"""Eager calls of differentiable ops past the Python that torch.library wraps around each: a quarter of a short call."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .library import GRADIENTS, Op

_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def call(op: Op, overload: Any, *inputs: Tensor | None, **keywords: Any) -> Any:
    """``overload(*inputs, **keywords)`` for an overload of ``op``, with the same values, gradients and errors.

    Compilers, function transforms and tensor subclasses see the op itself, as they must.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return overload(*inputs, **keywords)
    if not all(type(tensor) in _PLAIN for tensor in inputs):
        return overload(*inputs, **keywords)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _function(op.name, overload).apply(keywords, *inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*inputs, **keywords)


@cache
def _function(name: str, overload: Any) -> type[torch.autograd.Function]:
    """The autograd function that torch.library would make for an overload of op ``name``, by the same two functions."""
    gradient = GRADIENTS[name]
    derivative = getattr(gradient.backward, overload._overloadname)

    def forward(ctx: Any, keywords: dict[str, Any], *inputs: Tensor | None) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = overload(*inputs, **keywords)
        gradient.setup_context(ctx, inputs, keywords, output)
        return output

    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():  # of create_graph: what the op says of second derivatives holds
            return None, *gradient.formula(derivative, ctx, *grads)
        with torch._C._AutoDispatchBelowAutograd():
            return None, *gradient.formula(derivative, ctx, *grads)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(str(overload).replace(".", "_"), (torch.autograd.Function,), methods)
