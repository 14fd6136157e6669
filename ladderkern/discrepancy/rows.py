"""What the losses share: rows out of sequences, the checks that read values, and means of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.checks import check_integers, values_readable
from .table import DistanceTable

REDUCTIONS = ("mean", "sum", "none")


class RowStatistics(NamedTuple):
    """What a backward of the joint loss needs of each row: the ops' outputs, all but the cross-entropy.  5 x [T]"""

    discrepancy: Tensor
    top: Tensor
    total: Tensor
    image_top: Tensor
    image_total: Tensor


def check_options(table: Any, reduction: str, shift: int, **normalizers: Any) -> None:
    """Raises TypeError or ValueError for what no tensor needs to be looked at."""
    if not isinstance(table, DistanceTable):
        raise TypeError(f"table must be a ladderkern.DistanceTable, got {type(table).__name__}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if shift not in (0, 1):
        raise ValueError(f"shift must be 0 or 1, got {shift}")
    for name, value in normalizers.items():
        if value is None:
            continue
        if reduction != "mean":
            raise ValueError(f"{name} must be None unless reduction is 'mean', got {value} with {reduction!r}")
        if isinstance(value, Tensor):
            if value.dim() != 0:
                raise ValueError(f"{name} must be a number or a 0-dim tensor, got shape {tuple(value.shape)}")
        elif not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")


def rows_of(values: Tensor, labels: Tensor, shift: int, filler: int, name: str) -> tuple[Tensor, Tensor]:
    """Sequences as rows: ``values`` (logits or hidden states) [..., V] and its labels [...] -> [T, V], [T] int64.

    ``shift`` moves the labels, not the values, and the last position of a sequence gets ``filler``: nothing is copied.

    Raises:
        TypeError, ValueError: naming ``name`` or labels.
    """
    if not values.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {values.dtype}")
    check_integers(labels=labels)
    if values.dim() == 0:
        raise ValueError(f"{name} must have one dimension or more, got none")
    if labels.shape != values.shape[:-1]:
        raise ValueError(f"labels must have the shape {tuple(values.shape[:-1])} of {name} without its last dimension, "
                         f"got {tuple(labels.shape)}")  # fmt: skip
    labels = labels.to(torch.int64)
    if shift:
        if labels.dim() == 0:
            raise ValueError("shift must be 0 for a single position, got 1")
        last = labels.new_full((*labels.shape[:-1], min(1, labels.shape[-1])), filler)
        labels = torch.cat([labels[..., 1:], last], dim=-1)
    values = values.reshape(labels.numel(), values.shape[-1])
    if values.shape[1] > 1 and values.stride(1) != 1:
        values = values.contiguous()
    return values, labels.reshape(-1)


def positions_of(rows: Tensor, shape: Sequence[int], shift: int) -> Tensor:
    """Per-row results [T] as positions [...]; with ``shift``, the last of each sequence has none."""
    positions = rows.view(tuple(shape))
    return positions[..., :-1] if shift else positions


def reduce(losses: Tensor, counted: Tensor, reduction: str, normalizer: Any) -> Tensor:
    """Sum or mean of losses that are 0 wherever ``counted`` is not set; 0 with a graph where nothing is counted."""
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    count = counted.sum()
    if normalizer is None:
        return total / count.clamp(min=1)
    # Nothing counted and a count of 0 (all ranks may have only text): 0, as without a normalizer.
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.detach().to(total.dtype)
        return total / torch.where((count == 0) & (normalizer == 0), 1.0, normalizer)
    return total / (normalizer if normalizer else torch.where(count == 0, 1.0, 0.0).to(total.dtype))


def check_vocabulary(labels: Tensor, width: Any, ignore_index: int) -> None:
    """Raises IndexError if a label that is read is outside [0, width), where values may be read."""
    if values_readable(labels):
        outside = ((labels < 0) | (labels >= width)) & (labels != ignore_index)
        if outside.any():
            label = labels[outside][0].item()
            raise IndexError(f"labels must be in [0, {int(width)}) or ignore_index={ignore_index}, got {label}")
