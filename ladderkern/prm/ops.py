"""The contract of the step-score ops: schemas, the checks, fakes, registration and autograd.

scores [S, C], any strides, are the steps of all responses in order: logits, or with ``probabilities`` probabilities [S, 1].
offsets [R + 1] int64: response r owns rows offsets[r] .. offsets[r + 1] - 1. mask [S] bool says which rows are steps (None:
all); other rows give NaN, gradient exactly 0, and what they hold is ignored. class_weights [C], in the outputs' dtype and in
[0, 1], weigh the classes' probabilities; None: the score is that of class ``positive``. Outputs but indices and all arithmetic
are float32, float64 for float64 scores. What the packed outputs hold, in which order: :data:`STEPS`, :data:`RESPONSES`,
:data:`INDICES`. The ops are differentiable once, in scores; a backward runs the overload of its forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import backend, eager, library
from ..runtime.checks import values_readable
from ..runtime.dtypes import names, wide
from . import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

STEPS = ("margin", "prob", "log_prob")
RESPONSES = (
    "min",
    "max",
    "last",
    "mean",
    "product",
    "log_product",
    "geometric_mean",
    "mean_margin",
    "min_margin",
    "max_margin",
    "last_margin",
)
INDICES = ("count", "argmin", "argmax", "first_error")

_INPUTS = "Tensor scores, Tensor offsets, Tensor? mask, Tensor? class_weights"
_KEYWORDS = "int positive, float threshold, bool strict, bool probabilities"


def check(scores, offsets, mask, class_weights, *, positive, threshold, strict, probabilities, name="scores") -> None:
    """All requirements that need no values; ``name`` is what messages call ``scores``.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: ranks, shapes or devices that do not fit; ``positive`` or ``threshold`` out of range.
    """
    if scores.dtype not in FLOATS:
        raise TypeError(f"{name} must have one of the dtypes {names(FLOATS)}, got {scores.dtype}")
    if scores.dim() != 2 or scores.shape[1] == 0:
        raise ValueError(f"{name} must have shape [S, C] with C > 0, got {tuple(scores.shape)}")
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"offsets must have shape [R + 1], got {tuple(offsets.shape)}")
    S, C = scores.shape
    _check_like(scores, "offsets", offsets, torch.int64, tuple(offsets.shape))
    if mask is not None:
        _check_like(scores, "mask", mask, torch.bool, (S,))
    if class_weights is not None:
        _check_like(scores, "class_weights", class_weights, wide(scores.dtype), (C,))
        if C == 1:
            raise ValueError("class_weights must be None for one column, which has no classes")
    if probabilities and (C != 1 or class_weights is not None):
        raise ValueError(f"probabilities must be one column without class_weights, got {C} columns")
    if class_weights is None and not 0 <= positive < max(C, 2):
        raise ValueError(f"positive must be in 0..{max(C, 2) - 1}, a column of {name}, got {positive}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")


def check_backward(
    grad_steps, grad_responses, scores, offsets, mask, class_weights, steps, responses, indices, **options
) -> None:
    """The check of prm_scores_backward."""
    check(scores, offsets, mask, class_weights, **options)
    S, R, dtype = scores.shape[0], offsets.shape[0] - 1, wide(scores.dtype)
    for name, tensor in (("grad_steps", grad_steps), ("steps", steps)):
        _check_like(scores, name, tensor, dtype, (len(STEPS), S))
    for name, tensor in (("grad_responses", grad_responses), ("responses", responses)):
        _check_like(scores, name, tensor, dtype, (len(RESPONSES), R))
    _check_like(scores, "indices", indices, torch.int64, (len(INDICES), R))


def _check_like(scores: Tensor, name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must have dtype {names((dtype,))}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != scores.device:
        raise ValueError(f"{name} must be on the device of scores, {scores.device}, got {tensor.device}")


def weights_of(class_weights: Sequence[float] | Tensor, scores: Tensor) -> Tensor:
    """Class weights as the ops take them; of numbers made on the device, without a copy from the host.  [C]

    Raises:
        ValueError: another number of them than classes, or not in [0, 1] (of a tensor: where values may be read).
    """
    if len(class_weights) != scores.shape[-1]:
        raise ValueError(f"class_weights must have {scores.shape[-1]} entries, one for each class, got {len(class_weights)}")
    if isinstance(class_weights, Tensor):
        weights = class_weights.detach().to(wide(scores.dtype))
        inside = not values_readable(weights) or bool(((weights >= 0) & (weights <= 1)).all())
    else:
        weights = torch.stack([scores.new_full((), float(weight), dtype=wide(scores.dtype)) for weight in class_weights])
        inside = all(0 <= weight <= 1 for weight in class_weights)
    if not inside:
        raise ValueError(f"class_weights must be in [0, 1], got {class_weights}")
    return weights


def check_offsets(offsets: Tensor, rows: int, name: str = "offsets", what: str = "steps") -> None:
    """Raises ValueError unless offsets start at 0, never fall and end at ``rows``, where values may be read."""
    if not values_readable(offsets):
        return
    bounds = offsets.cpu().numpy()
    if bounds[0] != 0 or bounds[-1] != rows:
        raise ValueError(f"{name} must run from 0 to the {rows} {what}, got {bounds[0]} and {bounds[-1]} at the ends")
    if not (bounds[1:] >= bounds[:-1]).all():
        at = int((bounds[1:] < bounds[:-1]).argmax())
        raise ValueError(f"{name} must not fall, got {bounds[at]} before {bounds[at + 1]} at index {at + 1}")


def check_scores(name: str, steps: Tensor, responses: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError for a NaN step or a probability outside [0, 1], where values may be read.

    Looks at what prm_scores returned: each response's minimum and maximum tell, so the steps are read only if one is bad (or a
    response is empty).
    """
    if not values_readable(responses) or responses.numel() == 0:
        return
    values = responses.detach().cpu().numpy()
    if values[0].min() >= 0 and values[1].max() <= 1:
        return
    prob = steps.detach()[1]
    bad = ~((prob >= 0) & (prob <= 1))
    bad = bad if mask is None else bad & mask
    if bad.any():
        at = int(bad.nonzero()[0])
        raise ValueError(f"{name} must give every step a probability in [0, 1], got {prob[at].item()} at row {at}")


def _fake(scores, offsets, mask, class_weights, **options):
    S, R, dtype = scores.shape[0], offsets.shape[0] - 1, wide(scores.dtype)
    return (
        scores.new_empty((len(STEPS), S), dtype=dtype),
        scores.new_empty((len(RESPONSES), R), dtype=dtype),
        scores.new_empty((len(INDICES), R), dtype=torch.int64),
        scores.new_empty((R,), dtype=torch.bool),
    )


def _reference(scores, offsets, mask, class_weights, **options):
    check_offsets(offsets, scores.shape[0])
    return reference.prm_scores(scores, offsets, mask, class_weights, **options)


def _backward_fake(grad_steps, grad_responses, scores, *tensors, **options):
    return scores.new_empty(scores.shape)


def _backward_reference(*tensors, **options):
    check_offsets(tensors[3], tensors[2].shape[0])
    return reference.prm_scores_backward(*tensors, **options)


PRM_SCORES = library.define(
    "prm_scores",
    f"({_INPUTS}, *, {_KEYWORDS}) -> (Tensor steps, Tensor responses, Tensor indices, Tensor min_is_last)",
    check=check,
    reference=_reference,
    fake=_fake,
    triton=("ladderkern.prm.kernels", "prm_scores"),
    cuda=True,
)
PRM_SCORES_BACKWARD = library.define(
    "prm_scores_backward",
    f"(Tensor grad_steps, Tensor grad_responses, {_INPUTS}, Tensor steps, Tensor responses, Tensor indices, *, {_KEYWORDS})"
    " -> Tensor",
    check=check_backward,
    reference=_backward_reference,
    fake=_backward_fake,
    triton=("ladderkern.prm.kernels", "prm_scores_backward"),
)


def score(name: str, scores: Tensor, offsets: Tensor, mask: Tensor | None, class_weights: Tensor | None, **options: Any) -> Any:
    """prm_scores with all checks, on the backend in force; ``name`` is what messages call ``scores``."""
    check(scores, offsets, mask, class_weights, name=name, **options)
    check_offsets(offsets, scores.shape[0])
    outputs = eager.call(PRM_SCORES, backend.select(PRM_SCORES, scores), scores, offsets, mask, class_weights, **options)
    check_scores(name, outputs[0], outputs[1], mask)
    return outputs


library.differentiable(PRM_SCORES, PRM_SCORES_BACKWARD, 2, saved=slice(0, 3))
