"""The contract of the SPAM ops: schemas, the check, fakes, registration, and the call that honours ``backend()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import backend, library
from ..runtime.dtypes import names
from . import reference
from .reference import STRATUM, Hyper

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOMENTS = (torch.float32, torch.bfloat16, torch.float64)

_HYPER = (
    "float beta1, float beta2, float eps, float weight_decay, float threshold, int reset_interval, int warmup_steps, "
    "int unclipped_steps, bool cycle_correction, bool freeze_zero_variance, bool maximize, int density_16ths, "
    "bool row_mask, int seed"
)
# grads are declared mutable for the AMP path alone, which writes the unscaled gradient back as torch's fused optimizers do.
_STEP = (
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] steps, "
    f"Tensor lr, *, {_HYPER}, int[] indices, int[] placement, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)
_UPDATE = (
    f"(Tensor param, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor step, Tensor lr, *, {_HYPER}, int index=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


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


def check(params, grads, exp_avgs, exp_avg_sqs, steps, lr, indices, placement, density_16ths, row_mask) -> None:
    """All requirements on the tensors of a step.

    Raises:
        TypeError: a dtype or layout that is not served.
        ValueError: lists of different lengths, shapes or devices that do not fit.
    """
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps, "indices": indices}
    for name, items in lists.items():
        if len(items) != len(params):
            raise ValueError(f"{name} must have one entry for each of the {len(params)} params, got {len(items)}")
    if len(placement) not in (0, 4 * len(params)):
        raise ValueError(f"placement must be empty or hold 4 integers a parameter, got {len(placement)}")
    if lr.numel() != 1:
        raise ValueError(f"lr must hold one number, got shape {tuple(lr.shape)}")
    for i, (p, g, m, v, step) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True)):
        _check_one(f"[{i}]", p, g, m, v, step, density_16ths, row_mask)


def _check_one(at: str, p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: Tensor, density_16ths: int, row_mask: bool) -> None:
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


def check_step(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, *, indices, placement, grad_scale=None, found_inf=None, **hyper
) -> None:
    """The check of spam_step_; ``hyper`` are the other keywords of its schema."""
    check(params, grads, exp_avgs, exp_avg_sqs, steps, lr, indices, placement, hyper["density_16ths"], hyper["row_mask"])


def _step_fake(*tensors, **keywords):
    pass


def _step_reference(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, *, indices, placement, grad_scale=None, found_inf=None, **hyper
):
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    reference.spam_step_(*lists, lr, Hyper(**hyper), indices, placement, grad_scale, found_inf)


def _update(param, grad, exp_avg, exp_avg_sq, step, lr, *, index=0, **hyper):
    tensors = ([param], [grad], [exp_avg], [exp_avg_sq], [step])
    check(*tensors, lr, [index], [], hyper["density_16ths"], hyper["row_mask"])
    return reference.spam_update(param, grad, exp_avg, exp_avg_sq, step, lr, Hyper(**hyper), index)


SPAM_STEP = library.define(
    "spam_step_",
    _STEP,
    check=check_step,
    reference=_step_reference,
    fake=_step_fake,
    triton=("ladderkern.spam.kernels", "spam_step_"),
    cuda=True,
)
SPAM_UPDATE = library.define_composite("spam_update", _UPDATE, _update)


def spam_step_(
    lists: Sequence[list[Tensor]],
    lr: Tensor,
    indices: list[int],
    placement: list[int],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    options: dict[str, Any],
) -> None:
    """``torch.ops.ladderkern.spam_step_`` on the backend in force; errors name the argument as ValueError or TypeError.

    ``lists`` are params, grads, exp_avgs, exp_avg_sqs and steps; ``options`` the schema's keywords from beta1 to seed.
    """
    overload = backend.select(SPAM_STEP, *lists[0][:1])
    where = {"indices": indices, "placement": placement}
    try:
        overload(*lists, lr, grad_scale=grad_scale, found_inf=found_inf, **where, **options)
    except RuntimeError:
        # Native code checks before it writes, and can only raise RuntimeError: say the same in Python's terms.
        params, grads, exp_avgs, exp_avg_sqs, steps = lists
        check(
            params, grads, exp_avgs, exp_avg_sqs, steps, lr, indices, placement, options["density_16ths"], options["row_mask"]
        )
        raise
