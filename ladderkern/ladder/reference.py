"""Residual addition and RMS norm in plain PyTorch: the law that every backend must match.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization" (arXiv 1910.07467), of the residual stream:

    s = x + update (+ update2),    y = w * s / sqrt(mean(s^2) + eps),    xhat = s * rstd,

    ds = grad_stream + rstd * (w * dy - xhat * mean(w * dy * xhat)),     dw = sum over rows of dy * xhat.

All arithmetic is float32 (float64 for float64 rows). ``round_sum`` says what is rounded on the way to y:

    True     each addition is rounded to the dtype of x, and so is s * rstd before w multiplies it: bit by bit what eager
             additions and transformers' ``LlamaRMSNorm`` give;
    False    nothing but the result: the norm is that of the unrounded sum, as in flash-attn and quack.

The stream that is returned is rounded either way, and the gradient is taken at it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.dtypes import wide


def normalize(s: Tensor, dtype: torch.dtype, weight: Tensor, rstd: Tensor, round_sum: bool) -> Tensor:
    """w * s * rstd for wide rows ``s`` of a stream of ``dtype``, in the common dtype of stream and weight.  [rows, hidden]"""
    normalized = s * rstd[:, None]
    if round_sum:
        return weight * normalized.to(dtype)
    return (normalized * weight.to(s.dtype)).to(torch.promote_types(dtype, weight.dtype))


def reciprocal_rms(s: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(s^2) + eps).  [rows]"""
    return torch.rsqrt(s.square().mean(dim=1) + eps)


def add_rms_norm(
    x: Tensor,
    update: Tensor | None,
    update2: Tensor | None,
    weight: Tensor,
    weight2: Tensor | None,
    *,
    eps: float,
    round_sum: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(normed, the same with weight2 or None, stream, rstd).  [rows, hidden] x 3, [rows]"""
    s = x if round_sum else x.to(wide(x.dtype))
    for addend in (update, update2):
        if addend is not None:
            s = s + addend.to(s.dtype)
    stream, s = s.to(x.dtype), s.to(wide(x.dtype))
    rstd = reciprocal_rms(s, eps)
    normed2 = None if weight2 is None else normalize(s, x.dtype, weight2, rstd, round_sum)
    return normalize(s, x.dtype, weight, rstd, round_sum), normed2, stream, rstd


def add_rms_norm_backward(
    grad_normed: Tensor,
    grad_normed2: Tensor,
    grad_stream: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    weight2: Tensor | None,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(gradient of x and of each update, of weight, of weight2 or None).  [rows, hidden], [hidden] x 2"""
    grad, grad2 = grad_normed.to(rstd.dtype), grad_normed2.to(rstd.dtype)
    xhat = stream.to(rstd.dtype) * rstd[:, None]
    scaled = grad * weight
    if weight2 is not None:
        scaled = scaled + grad2 * weight2
    gradient = rstd[:, None] * (scaled - xhat * (scaled * xhat).mean(dim=1, keepdim=True))
    if grad_stream is not None:
        gradient = grad_stream + gradient
    grad_weight2 = None if weight2 is None else (grad2 * xhat).sum(dim=0).to(weight2.dtype)
    return gradient.to(stream.dtype), (grad * xhat).sum(dim=0).to(weight.dtype), grad_weight2


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, round_sum: bool) -> tuple[Tensor, Tensor]:
    """(normed, rstd) of x alone.  [rows, hidden], [rows]"""
    s = x.to(wide(x.dtype))
    rstd = reciprocal_rms(s, eps)
    return normalize(s, x.dtype, weight, rstd, round_sum), rstd


def rms_norm_backward(grad_normed: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of x, of weight).  [rows, hidden], [hidden]"""
    grad_x, grad_weight, _ = add_rms_norm_backward(grad_normed, grad_normed, None, x, weight, None, rstd)
    return grad_x, grad_weight
