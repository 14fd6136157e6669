"""Residual addition and RMS norm in one pass: what stands between any two modules of a transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime import backend, eager
from .ops import ADD_RMS_NORM, RMS_NORM, check_add_rms_norm, check_rms_norm

CONVENTIONS = {"rounded": True, "float32": False}


def add_rms_norm(
    x: Tensor,
    update: Tensor | None,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    update2: Tensor | None = None,
    weight2: Tensor | None = None,
    convention: str = "rounded",
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """``stream = x + update (+ update2)``; ``normed = weight * stream / sqrt(mean(stream^2) + eps)``.

    One pass forward and one backward, which sums the gradients of stream and normed: 8 bytes an element each in bfloat16.

    Args:
        x: the residual stream, float32, bfloat16, float16 or float64 [..., hidden]. Any strides: rows that are not contiguous
            are copied.
        update: what is added, of the same shape, or None: stream is then a copy of x. Other dtypes are promoted as by ``+``.
        weight: [hidden], of any of the dtypes; float64 only where the stream is.
        eps: added to the mean square.
        update2: a second addend, as at the end of a ladder.
        weight2: [hidden], of the dtype of weight: a second norm of the same stream, as in the first layer of a ladder,
            whose two modules both read the embedding.
        convention: ``"rounded"`` is bit by bit what eager additions and transformers' ``LlamaRMSNorm`` give (up to the order
            of the sum of squares): each addition is rounded to the dtype of the stream, and so is the normalised row before
            weight multiplies it. ``"float32"`` rounds the results alone, as flash-attn and quack do. For float32 rows the two
            differ in the order of no operation; arithmetic is float32 in both, float64 for float64 streams.

    Returns:
        (normed, stream), or with weight2 (normed, normed2, stream): [..., hidden]; stream in the common dtype of x and the
        updates, normed in that of stream and weight. Differentiable once, in every tensor; weight gradients are summed in
        float32 in an order that depends on the shape alone.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: see :func:`ladderkern.backend`.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467); the forms with two addends and two weights are what a ladder needs
    (Zhang et al. 2025, arXiv 2501.06589).

    >>> normed, stream = ladderkern.add_rms_norm(torch.ones(1, 4), torch.ones(1, 4), torch.ones(4), eps=0.0)
    >>> normed, stream
    (tensor([[1., 1., 1., 1.]]), tensor([[2., 2., 2., 2.]]))
    """
    round_sum = _round_sum(convention)
    check_shapes(x, update=update, update2=update2)
    dtype = x.dtype
    for added in (update, update2):
        if added is not None and added.dtype != dtype:
            dtype = torch.promote_types(dtype, added.dtype)
    rows = (_rows(x if x.dtype == dtype else x.to(dtype)), _addend(update, dtype), _addend(update2, dtype))
    weights = (weight.contiguous(), None if weight2 is None else weight2.contiguous())
    inputs = (*rows, *weights)
    check_add_rms_norm(*inputs)
    normed, normed2, stream, _ = eager.call(
        ADD_RMS_NORM, backend.select(ADD_RMS_NORM, x), *inputs, eps=float(eps), round_sum=round_sum
    )
    if weight2 is None:
        return _like(x, normed), _like(x, stream)
    return _like(x, normed), _like(x, normed2), _like(x, stream)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, convention: str = "rounded") -> Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension.

    Args and errors are those of :func:`add_rms_norm`; with ``convention="rounded"`` transformers' ``LlamaRMSNorm``.

    Returns:
        [..., hidden], in the common dtype of x and weight. Differentiable once.

    >>> ladderkern.rms_norm(torch.full((1, 4), 2.0), torch.ones(4), eps=0.0)
    tensor([[1., 1., 1., 1.]])
    """
    round_sum = _round_sum(convention)
    check_shapes(x)
    inputs = _rows(x), weight.contiguous()
    check_rms_norm(*inputs)
    normed, _ = eager.call(RMS_NORM, backend.select(RMS_NORM, x), *inputs, eps=float(eps), round_sum=round_sum)
    return _like(x, normed)


def check_shapes(x: Tensor, **updates: Tensor | None) -> None:
    """Raises ValueError unless x has a last dimension that is not empty, and each update the shape of x."""
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have shape [..., hidden] with hidden of at least 1, got {tuple(x.shape)}")
    for name, update in updates.items():
        if update is not None and update.shape != x.shape:
            raise ValueError(f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(update.shape)}")


def _rows(x: Tensor) -> Tensor:
    """x as [rows, hidden] with stride 1 along hidden; a view where its memory allows it."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] == 1 or rows.stride(1) == 1 else rows.contiguous()


def _like(x: Tensor, rows: Tensor) -> Tensor:
    return rows if x.dim() == 2 else rows.view(x.shape)


def _addend(update: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if update is None:
        return None
    # One gradient serves x and the updates. AccumulateGrad takes over the memory of a view without a look at who shares it, so
    # that of a leaf is made its own.
    own = update * 1 if update.is_leaf and update.requires_grad else update
    return _rows(own if own.dtype == dtype else own.to(dtype))


def _round_sum(convention: str) -> bool:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    return CONVENTIONS[convention]
