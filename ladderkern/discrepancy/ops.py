"""The contract of the token-discrepancy ops: schemas, the checks, fakes, registration and autograd.

Every op takes logits [T, V] whose rows are contiguous (any distance between rows), labels [T] int64, and a table:

    metric 0        table [N, N]: D[y, j] = table[y, j] * scale + offset for j != y, and exactly 0 for j == y
    metric 1, 2, 3  table [N, d], the float32 codebook: D is mse, sqeuclidean, euclidean of two rows (offset, scale unused)

The image columns are image_start .. image_start + N - 1. A row is an image row if its label is one of them, else it is
skipped: loss 0, gradient exactly 0, its logits unread. Outputs for a row and all arithmetic are float32, float64 for float64
logits. The ops are differentiable once, in logits; a backward runs the overload of its forward.

Of each softmax a backward gets the pair (top, total), total = sum_j exp(x_j - top): the softmax is exp(x - top) / total, and no
rounding of a large logsumexp is in it. top is the largest logit; 0 and 0 where the row has no part in that softmax, -inf and 0
where all of its columns are -inf, NaN where one is NaN (top may be another number then).
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..runtime import library
from ..runtime.dtypes import names, wide
from . import reference
from .reference import METRICS, TABLE

LOGITS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TABLES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_COMMON = "int metric, float offset, float scale, int image_start"
_JOINT = f"{_COMMON}, int ignore_index, float label_smoothing"
_INPUTS = "Tensor logits, Tensor labels, Tensor table"
_PAIRS = "Tensor top, Tensor total, Tensor image_top, Tensor image_total"


def check(logits: Tensor, labels: Tensor, table: Tensor, metric: int, image_start: int) -> None:
    """All requirements on what every op of this feature reads.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: ranks, shapes, strides or devices that do not fit; image columns outside the logits.
    """
    check_inputs(logits, labels, table, metric)
    check_columns(image_start, table.shape[0], logits.shape[1])


def check_inputs(logits: Tensor, labels: Tensor, table: Tensor, metric: int) -> None:
    """All of :func:`check` but where the image columns lie."""
    for name, tensor, allowed in (("logits", logits, LOGITS), ("labels", labels, (torch.int64,)), ("table", table, TABLES)):
        if tensor.dtype not in allowed:
            raise TypeError(f"{name} must have one of the dtypes {names(allowed)}, got {tensor.dtype}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} must be on the device of logits, {logits.device}, got {tensor.device}")
    if logits.dim() != 2:
        raise ValueError(f"logits must have shape [T, V], got {tuple(logits.shape)}")
    if labels.dim() != 1 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels must have shape ({logits.shape[0]},), one for each row of logits, got {tuple(labels.shape)}")
    if logits.shape[1] > 1 and logits.stride(1) != 1 and logits.numel():
        raise ValueError(f"logits must have stride 1 along the vocabulary, got strides {logits.stride()}")
    check_table(table, metric)


def check_columns(image_start: int, num_codes: int, width: int) -> None:
    """Raises ValueError unless image_start .. image_start + num_codes - 1 are columns of logits of ``width``."""
    if image_start < 0 or image_start + num_codes > width:
        columns = f"{image_start}..{image_start + num_codes - 1}"
        raise ValueError(f"image_start must put the {num_codes} image columns inside 0..{width - 1}, got {columns}")


def check_table(table: Tensor, metric: int) -> None:
    """Raises ValueError or TypeError unless ``table`` is what ``metric`` says: square distances, or a float32 codebook."""
    if metric != TABLE and metric not in METRICS.values():
        raise ValueError(f"metric must be 0 (distances), 1 (mse), 2 (sqeuclidean) or 3 (euclidean), got {metric}")
    if table.dim() != 2 or table.shape[0] == 0 or table.shape[1] == 0 or not table.is_contiguous():
        raise ValueError(f"table must be a contiguous matrix with rows, got {tuple(table.shape)}, strides {table.stride()}")
    if metric == TABLE and table.shape[0] != table.shape[1]:
        raise ValueError(f"table must be square for metric 0, got {tuple(table.shape)}")
    if metric != TABLE and table.dtype != torch.float32:
        raise TypeError(f"table must be a float32 codebook for metric {metric}, got {table.dtype}")


def check_rows(logits: Tensor, **rows: Tensor) -> None:
    """Raises ValueError or TypeError unless each of ``rows`` holds one number a row in wide precision."""
    for name, tensor in rows.items():
        if tensor.dtype != wide(logits.dtype):
            raise TypeError(f"{name} must have dtype {wide(logits.dtype)}, got {tensor.dtype}")
        if tensor.dim() != 1 or tensor.shape[0] != logits.shape[0]:
            raise ValueError(f"{name} must have shape ({logits.shape[0]},), got {tuple(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} must be on the device of logits, {logits.device}, got {tensor.device}")


def check_smoothing(label_smoothing: float) -> None:
    """Raises ValueError unless ``label_smoothing`` is in [0, 1]."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")


def _rows_like(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(logits.new_empty((logits.shape[0],), dtype=wide(logits.dtype)) for _ in range(count))


def _gradient_fake(*tensors: Tensor, **options: Any) -> Tensor:
    logits = next(tensor for tensor in tensors if tensor.dim() == 2)  # the first that is not one number a row
    return logits.new_empty(logits.shape)


# --------------------------------------------------------------------------------------------------- the discrepancy alone


def check_discrepancy(logits: Tensor, labels: Tensor, table: Tensor, **options: Any) -> None:
    """The check of token_discrepancy; ``options`` are the schema's keywords."""
    check(logits, labels, table, options["metric"], options["image_start"])


def check_discrepancy_backward(grad_output, logits, labels, table, loss, top, total, **options) -> None:
    """The check of token_discrepancy_backward."""
    check(logits, labels, table, options["metric"], options["image_start"])
    check_rows(logits, grad_output=grad_output, loss=loss, top=top, total=total)


TOKEN_DISCREPANCY = library.define(
    "token_discrepancy",
    f"({_INPUTS}, *, {_COMMON}) -> (Tensor loss, Tensor top, Tensor total)",
    check=check_discrepancy,
    reference=reference.token_discrepancy,
    fake=lambda logits, *_, **options: _rows_like(logits, 3),
    triton=("ladderkern.discrepancy.kernels", "token_discrepancy"),
)
TOKEN_DISCREPANCY_BACKWARD = library.define(
    "token_discrepancy_backward",
    f"(Tensor grad_output, {_INPUTS}, Tensor loss, Tensor top, Tensor total, *, {_COMMON}) -> Tensor",
    check=check_discrepancy_backward,
    reference=reference.token_discrepancy_backward,
    fake=_gradient_fake,
    triton=("ladderkern.discrepancy.kernels", "token_discrepancy_backward"),
)


# --------------------------------------------------------------------------------------------------- with cross-entropy


def check_joint(logits: Tensor, labels: Tensor, table: Tensor, **options: Any) -> None:
    """The check of cross_entropy_discrepancy; ``options`` are the schema's keywords."""
    check(logits, labels, table, options["metric"], options["image_start"])
    check_smoothing(options["label_smoothing"])


def check_joint_backward(
    grad_cross_entropy, grad_discrepancy, logits, labels, table, discrepancy, top, total, image_top, image_total, **options
) -> None:
    """The check of cross_entropy_discrepancy_backward."""
    check_joint(logits, labels, table, **options)
    check_rows(logits, grad_cross_entropy=grad_cross_entropy, grad_discrepancy=grad_discrepancy, discrepancy=discrepancy)
    check_rows(logits, top=top, total=total, image_top=image_top, image_total=image_total)


CROSS_ENTROPY_DISCREPANCY = library.define(
    "cross_entropy_discrepancy",
    f"({_INPUTS}, *, {_JOINT}) -> (Tensor cross_entropy, Tensor discrepancy, {_PAIRS})",
    check=check_joint,
    reference=reference.cross_entropy_discrepancy,
    fake=lambda logits, *_, **options: _rows_like(logits, 6),
    triton=("ladderkern.discrepancy.kernels", "cross_entropy_discrepancy"),
)
CROSS_ENTROPY_DISCREPANCY_BACKWARD = library.define(
    "cross_entropy_discrepancy_backward",
    f"(Tensor grad_cross_entropy, Tensor grad_discrepancy, {_INPUTS}, Tensor discrepancy, {_PAIRS}, *, {_JOINT}) -> Tensor",
    check=check_joint_backward,
    reference=reference.cross_entropy_discrepancy_backward,
    fake=_gradient_fake,
    triton=("ladderkern.discrepancy.kernels", "cross_entropy_discrepancy_backward"),
)


# ----------------------------------------------------------------------------------------------------------------- autograd


library.differentiable(TOKEN_DISCREPANCY, TOKEN_DISCREPANCY_BACKWARD, 1, saved=slice(0, 3))
library.differentiable(CROSS_ENTROPY_DISCREPANCY, CROSS_ENTROPY_DISCREPANCY_BACKWARD, 2, saved=slice(1, 6))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *reached: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        library.raise_on_double_backward(ctx.name)


def differentiable_once(name: str, gradient: Tensor, *reached: Tensor) -> Tensor:
    """``gradient``, computed by an autograd.Function from ``reached``, such that going back through it is an error.

    torch's once_differentiable sees the incoming gradients alone: to what else a gradient depends on it is silently constant.
    """
    return _Once.apply(name, gradient, *reached) if torch.is_grad_enabled() else gradient  # type: ignore[no-any-return]
