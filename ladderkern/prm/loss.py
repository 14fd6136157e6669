"""The training loss of a PRM: cross-entropy or squared error at the steps' positions, and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.checks import values_readable
from ..runtime.dtypes import wide
from . import labels as step_labels
from .labels import IGNORED
from .reference import log_odds

REDUCTIONS = ("mean", "sum", "none")


def step_loss(
    logits: Tensor,
    labels: Tensor,
    offsets: Tensor | None = None,
    drop_after_first_error: bool = False,
    reduction: str = "mean",
    *,
    positive: int = 1,
) -> Tensor:
    """Loss of step scores: cross-entropy for hard labels, mean squared error of the probability for soft ones.

    With z the margin of a step and p = sigmoid(z), hard labels y give -log p (y = 1) or -log(1 - p) (y = 0), of two classes
    the usual cross-entropy, with gradient p - y; soft labels y give (p - y)^2, whose gradient vanishes where p saturates.

    Args:
        logits: [..., C], or [...] of a scalar head: packed steps [S, C], or all tokens [B, T, C].
        labels: [...]: integers or bool (1 right, 0 wrong, whatever ``positive`` is), or floats in [0, 1]. -100 marks what is
            no step or has no label: loss 0, gradient exactly 0, whatever the logits hold.
        offsets: [R+1] integers, where each response of packed steps starts; read for ``drop_after_first_error`` alone.
        drop_after_first_error: ignore the steps of a response after the first labelled 0, as the paper trains. Padded labels
            [B, T] need no offsets: each row is a response.
        reduction: ``"mean"`` over labelled steps (0 with a graph when there are none), ``"sum"`` or ``"none"``. With gradient
            accumulation: "sum", divided by the labelled steps of all batches.
        positive: the class that means "right".

    Returns:
        A scalar, or [...] for "none"; float32 from upcast logits, float64 for float64 logits.

    Raises:
        TypeError, ValueError: naming the argument; label values where they may be read.

    Source: Zhang et al. 2025 (arXiv 2501.07301), section 3.1: cross-entropy for hard labels, MSE for soft ones.

    >>> logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 3.0]])  # 3 steps
    >>> round(ladderkern.prm.step_loss(logits, torch.tensor([1, 0, -100])).item(), 4)
    0.2201
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    rows = _rows(logits, labels, positive)
    labels = labels.long() if labels.dtype == torch.bool else labels
    _check_values(labels)
    if drop_after_first_error:
        labels = _dropped(labels, offsets)
    kept = (labels != IGNORED).reshape(-1)
    y = labels.reshape(-1)
    z = log_odds(torch.where(kept[:, None], rows.to(wide(rows.dtype)), 0.0), None, positive)
    if labels.dtype.is_floating_point:
        losses = (torch.sigmoid(z) - y.to(z.dtype)).square()
    else:
        losses = -F.logsigmoid(torch.where(y == 1, z, -z))
    losses = torch.where(kept, losses, 0.0)
    if reduction == "none":
        return losses.view(labels.shape)
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum().clamp(min=1)


def _rows(logits: Tensor, labels: Tensor, positive: int) -> Tensor:
    """The logits as [S, C], a row for each label."""
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if labels.dtype.is_complex:
        raise TypeError(f"labels must hold integers, bool or floats, got {labels.dtype}")
    if labels.device != logits.device:
        raise ValueError(f"labels must be on the device of logits, {logits.device}, got {labels.device}")
    if labels.shape == logits.shape:
        logits = logits.unsqueeze(-1)
    if labels.dim() == 0 or labels.shape != logits.shape[:-1] or logits.shape[-1] == 0:
        raise ValueError(f"labels must have the shape [...] of logits [..., C] or [...], got {tuple(labels.shape)} for "
                         f"{tuple(logits.shape)}")  # fmt: skip
    C = logits.shape[-1]
    if not 0 <= positive < max(C, 2):
        raise ValueError(f"positive must be in 0..{max(C, 2) - 1}, a column of logits, got {positive}")
    return logits.reshape(labels.numel(), C)


def _check_values(labels: Tensor) -> None:
    if not values_readable(labels):
        return
    fits = (labels >= 0) & (labels <= 1) | (labels == IGNORED)
    if not fits.all():
        allowed = "in [0, 1]" if labels.dtype.is_floating_point else "0 or 1"
        raise ValueError(f"labels must be {allowed}, or {IGNORED} where there is none, got {labels[~fits][0].item()}")


def _dropped(labels: Tensor, offsets: Tensor | None) -> Tensor:
    if labels.dim() == 1 and offsets is None:
        raise ValueError("offsets must be given to drop what comes after the first error of each response")
    if labels.dim() > 1:
        if offsets is not None:
            raise ValueError(f"offsets must be None for padded labels of shape {tuple(labels.shape)}: each row is a response")
        T = labels.shape[-1]
        offsets = torch.arange(labels.numel() // T + 1 if T else 1, device=labels.device) * T
    assert offsets is not None
    return step_labels.drop_after_first_error(labels.reshape(-1), offsets).view(labels.shape)
