"""What the SPAM ops ask of the tensors of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.dtypes import names
from .reference import STRATUM

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOMENTS = (torch.float32, torch.bfloat16, torch.float64)
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps")


def compact_shape(shape: Sequence[int], density_16ths: int, row_mask: bool) -> tuple[int, ...]:
    """Shape of the moments of a parameter (or shard) of ``shape``: the drawn part of the last (row mask: first) dimension."""
    shape = tuple(shape)
    if density_16ths == STRATUM or not eligible(shape, row_mask):
        return shape
    if row_mask:
        return (shape[0] // STRATUM * density_16ths, *shape[1:])
    return (*shape[:-1], shape[-1] // STRATUM * density_16ths)


def eligible(shape: Sequence[int], row_mask: bool) -> bool:
    """Whether masks apply: two or more dimensions, and a drawn dimension that is a multiple of 16."""
    return len(shape) >= 2 and shape[0 if row_mask else -1] % STRATUM == 0


def check(params, grads, exp_avgs, exp_avg_sqs, steps, lr, indices, placement, density_16ths, row_mask, written) -> None:
    """All requirements on the tensors of a step; ``written`` are the names of the lists that it changes.

    Raises:
        TypeError: a dtype or layout that is not served.
        ValueError: lists of different lengths, shapes or devices that do not fit, an expanded tensor that is written.
    """
    tensors = (params, grads, exp_avgs, exp_avg_sqs, steps)
    for name, items in zip((*LISTS, "indices"), (*tensors, indices), strict=True):
        if len(items) != len(params):
            raise ValueError(f"{name} must have one entry for each of the {len(params)} params, got {len(items)}")
    if len(placement) not in (0, 4 * len(params)):
        raise ValueError(f"placement must be empty or hold 4 integers a parameter, got {len(placement)}")
    if lr.numel() != 1:
        raise ValueError(f"lr must hold one number, got shape {tuple(lr.shape)}")
    for i, (p, g, m, v, step) in enumerate(zip(*tensors, strict=True)):
        _check_one(f"[{i}]", p, g, m, v, step, density_16ths, row_mask, written)


def _check_one(
    at: str,
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    step: Tensor,
    density_16ths: int,
    row_mask: bool,
    written: Sequence[str],
) -> None:
    for name, tensor, allowed in (
        ("params", p, FLOATS),
        ("grads", g, FLOATS),
        ("exp_avgs", m, MOMENTS),
        ("exp_avg_sqs", v, MOMENTS),
        ("steps", step, FLOATS),
    ):
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}{at} must be dense, got layout {tensor.layout}")
        if tensor.dtype not in allowed:
            raise TypeError(f"{name}{at} must have one of the dtypes {names(allowed)}, got {tensor.dtype}")
        if tensor.device != p.device:
            raise ValueError(f"{name}{at} must be on its parameter's device {p.device}, got {tensor.device}")
    if v.dtype != m.dtype:
        raise TypeError(f"exp_avg_sqs{at} must have the dtype of exp_avgs{at}, {m.dtype}, got {v.dtype}")
    if g.shape != p.shape:
        raise ValueError(f"grads{at} must have its parameter's shape {tuple(p.shape)}, got {tuple(g.shape)}")
    dense, compact = tuple(p.shape), compact_shape(p.shape, density_16ths, row_mask)
    for name, tensor in (("exp_avgs", m), ("exp_avg_sqs", v)):
        if tensor.shape != m.shape or (tuple(tensor.shape) != dense and tuple(tensor.shape) != compact):
            either = f"{dense}" if dense == compact else f"{dense} or {compact}"
            raise ValueError(f"{name}{at} must have shape {either}, got {tuple(tensor.shape)}")
    if step.dtype != torch.float32 or step.numel() != 1:
        raise TypeError(f"steps{at} must hold one float32 number, got {step.dtype} of shape {tuple(step.shape)}")
    for name, tensor in zip(LISTS, (p, g, m, v, step), strict=True):
        if name in written and is_expanded(tensor):
            raise ValueError(f"{name}{at} is written and must not be expanded, got strides {tensor.stride()}")


def is_expanded(tensor: Tensor) -> bool:
    """Whether one place in memory stands for several elements, as ``expand`` makes it."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
