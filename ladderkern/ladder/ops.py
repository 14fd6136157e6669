"""The contract of the residual-norm ops: schemas, the checks, fakes, registration and autograd.

Every op takes rows, x [rows, hidden], with stride 1 along hidden and any distance between rows. Addends and gradients of rows
are laid out alike; weights are [hidden] and contiguous. Outputs:

    normed    [rows, hidden], in torch's common dtype of x and weight
    stream    [rows, hidden], in the dtype of x: the sum, of its own memory even where nothing is added
    rstd      [rows], float32 (float64 for float64 x), which the backward reads

Without weight2, normed2 is an empty tensor [0], and so are grad_normed2 and grad_weight2. grad_x is the gradient of x and of
each addend. ``round_sum``: see reference.py. Differentiable once, in all tensors; a backward runs the overload of its forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.dtypes import names, wide
from . import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(x: Tensor, weight: Tensor, weight2: Tensor | None = None, **rows: Tensor | None) -> None:
    """All requirements on what every op of this feature reads; ``rows`` are tensors that must be like x.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit.
    """
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must have one of the dtypes {names(FLOATS)}, got {tensor.dtype}")
    if weight.dtype == torch.float64 and x.dtype != torch.float64:
        raise TypeError(f"weight may be float64 only where x is, got x of {x.dtype}")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape [rows, hidden] with hidden of at least 1, got {tuple(x.shape)}")
    check_rows(x, x.dtype, x=x, **rows)
    for name, vector in (("weight", weight), ("weight2", weight2)):
        if vector is None:
            continue
        if vector.dtype != weight.dtype:
            raise TypeError(f"{name} must have the dtype of weight, {weight.dtype}, got {vector.dtype}")
        if vector.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {vector.device}")
        if vector.dim() != 1 or vector.shape[0] != x.shape[1] or not vector.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous of shape ({x.shape[1]},), the hidden size of x, got {tuple(vector.shape)}, "
                f"strides {vector.stride()}"
            )


def check_rows(like: Tensor, dtype: torch.dtype, /, **rows: Tensor | None) -> None:
    """Raises ValueError or TypeError unless each of ``rows`` has the shape of x, ``dtype``, and stride 1 along hidden."""
    for name, tensor in rows.items():
        if tensor is None:
            continue
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must have dtype {dtype}, got {tensor.dtype}")
        if tensor.device != like.device:
            raise ValueError(f"{name} must be on the device of x, {like.device}, got {tensor.device}")
        if tensor.shape != like.shape:
            raise ValueError(f"{name} must have the shape of x, {tuple(like.shape)}, got {tuple(tensor.shape)}")
        if like.shape[1] > 1 and tensor.stride(1) != 1 and tensor.numel():
            raise ValueError(f"{name} must have stride 1 along hidden, got strides {tensor.stride()}")


def check_rstd(x: Tensor, rstd: Tensor) -> None:
    """Raises ValueError or TypeError unless ``rstd`` is what a forward returned for x."""
    if rstd.dtype != wide(x.dtype):
        raise TypeError(f"rstd must have dtype {wide(x.dtype)}, got {rstd.dtype}")
    if rstd.dim() != 1 or rstd.shape[0] != x.shape[0] or not rstd.is_contiguous():
        raise ValueError(f"rstd must be contiguous of shape ({x.shape[0]},), one for each row, got {tuple(rstd.shape)}")
    if rstd.device != x.device:
        raise ValueError(f"rstd must be on the device of x, {x.device}, got {rstd.device}")


def _common(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, weight.dtype)


def _absent(tensor: Tensor) -> Tensor:
    return tensor.new_empty((0,))


# ------------------------------------------------------------------------------------------------------------ add, then norm


def check_add_rms_norm(x, update, update2, weight, weight2, **options: Any) -> None:
    """The check of add_rms_norm; ``options`` are the schema's keywords."""
    if update is None and update2 is not None:
        raise ValueError("update2 must be None where update is")
    check(x, weight, weight2, update=update, update2=update2)


def check_add_rms_norm_backward(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd) -> None:
    """The check of add_rms_norm_backward."""
    check(stream, weight, weight2, grad_stream=grad_stream)
    check_rows(stream, _common(stream, weight), grad_normed=grad_normed)
    if weight2 is not None:
        check_rows(stream, _common(stream, weight), grad_normed2=grad_normed2)
    check_rstd(stream, rstd)


def _add_fake(x, update, update2, weight, weight2, **options):
    normed = x.new_empty(x.shape, dtype=_common(x, weight))
    normed2 = _absent(normed) if weight2 is None else torch.empty_like(normed)
    return normed, normed2, x.new_empty(x.shape), x.new_empty((x.shape[0],), dtype=wide(x.dtype))


def _add_reference(x, update, update2, weight, weight2, **options):
    normed, normed2, stream, rstd = reference.add_rms_norm(x, update, update2, weight, weight2, **options)
    # An op returns no alias of its input, and contiguous rows as its fake says.
    stream = stream.clone(memory_format=torch.contiguous_format) if update is None else stream.contiguous()
    return normed.contiguous(), _absent(normed) if normed2 is None else normed2.contiguous(), stream, rstd


def _add_backward_fake(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd):
    grad_weight2 = _absent(weight) if weight2 is None else torch.empty_like(weight2)
    return stream.new_empty(stream.shape), torch.empty_like(weight), grad_weight2


def _add_backward_reference(*tensors):
    grad_x, grad_weight, grad_weight2 = reference.add_rms_norm_backward(*tensors)
    return grad_x.contiguous(), grad_weight, _absent(grad_weight) if grad_weight2 is None else grad_weight2


ADD_RMS_NORM = library.define(
    "add_rms_norm",
    "(Tensor x, Tensor? update, Tensor? update2, Tensor weight, Tensor? weight2, *, float eps, bool round_sum) "
    "-> (Tensor normed, Tensor normed2, Tensor stream, Tensor rstd)",
    check=check_add_rms_norm,
    reference=_add_reference,
    fake=_add_fake,
    triton=("ladderkern.ladder.kernels", "add_rms_norm"),
    cuda=True,
)
ADD_RMS_NORM_BACKWARD = library.define(
    "add_rms_norm_backward",
    "(Tensor grad_normed, Tensor grad_normed2, Tensor grad_stream, Tensor stream, Tensor weight, Tensor? weight2, Tensor rstd) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_weight2)",
    check=check_add_rms_norm_backward,
    reference=_add_backward_reference,
    fake=_add_backward_fake,
    triton=("ladderkern.ladder.kernels", "add_rms_norm_backward"),
    cuda=True,
)


# ----------------------------------------------------------------------------------------------------------------- norm alone


def check_rms_norm(x, weight, **options: Any) -> None:
    """The check of rms_norm; ``options`` are the schema's keywords."""
    check(x, weight)


def check_rms_norm_backward(grad_normed, x, weight, rstd) -> None:
    """The check of rms_norm_backward."""
    check(x, weight)
    check_rows(x, _common(x, weight), grad_normed=grad_normed)
    check_rstd(x, rstd)


def _norm_fake(x, weight, **options):
    return x.new_empty(x.shape, dtype=_common(x, weight)), x.new_empty((x.shape[0],), dtype=wide(x.dtype))


def _norm_reference(x, weight, **options):
    normed, rstd = reference.rms_norm(x, weight, **options)
    return normed.contiguous(), rstd


def _norm_backward_fake(grad_normed, x, weight, rstd):
    return x.new_empty(x.shape), torch.empty_like(weight)


def _norm_backward_reference(*tensors):
    grad_x, grad_weight = reference.rms_norm_backward(*tensors)
    return grad_x.contiguous(), grad_weight


RMS_NORM = library.define(
    "rms_norm",
    "(Tensor x, Tensor weight, *, float eps, bool round_sum) -> (Tensor normed, Tensor rstd)",
    check=check_rms_norm,
    reference=_norm_reference,
    fake=_norm_fake,
    triton=("ladderkern.ladder.kernels", "rms_norm"),
    cuda=True,
)
RMS_NORM_BACKWARD = library.define(
    "rms_norm_backward",
    "(Tensor grad_normed, Tensor x, Tensor weight, Tensor rstd) -> (Tensor grad_x, Tensor grad_weight)",
    check=check_rms_norm_backward,
    reference=_norm_backward_reference,
    fake=_norm_backward_fake,
    triton=("ladderkern.ladder.kernels", "rms_norm_backward"),
    cuda=True,
)


# ------------------------------------------------------------------------------------------------------------------ autograd


def _rows(grad: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An incoming gradient as the backward ops take it: zeros, of one row in memory, where there is none."""
    if grad is None:
        return like.new_zeros((1, like.shape[1]), dtype=dtype).expand(like.shape)
    return grad if grad.shape[1] == 1 or grad.stride(1) == 1 else grad.contiguous()


def _add_setup(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    _, update, update2, weight, weight2 = inputs
    _, normed2, stream, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*((rstd,) if weight2 is not None else (normed2, rstd)))
    ctx.save_for_backward(stream, weight, weight2, rstd)
    ctx.added = update is not None, update2 is not None


def _add_backward(op: Any, ctx: Any, grad_normed: Any, grad_normed2: Any, grad_stream: Any, _: Any) -> Any:
    stream, weight, weight2, rstd = ctx.saved_tensors
    dtype = _common(stream, weight)
    grad_normed = _rows(grad_normed, stream, dtype)
    grad_normed2 = _absent(grad_normed) if weight2 is None else _rows(grad_normed2, stream, dtype)
    grad_stream = _rows(grad_stream, stream, stream.dtype)
    grad_x, grad_weight, grad_weight2 = op(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd)
    updates = (grad_x if added else None for added in ctx.added)
    return grad_x, *updates, grad_weight, None if weight2 is None else grad_weight2


def _norm_setup(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _norm_backward(op: Any, ctx: Any, grad_normed: Any, _: Any) -> Any:
    return op(_rows(grad_normed, grad_normed, grad_normed.dtype), *ctx.saved_tensors)


library.differentiable_by(_add_backward, ADD_RMS_NORM, ADD_RMS_NORM_BACKWARD, _add_setup)
library.differentiable_by(_norm_backward, RMS_NORM, RMS_NORM_BACKWARD, _norm_setup)
