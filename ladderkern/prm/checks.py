"""What the functions on labels and responses ask of their arguments; the op's own checks are in ops.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.checks import check_integers, values_readable
from . import ops


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless both have one shape and one device."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape {tuple(other.shape)} of {other_name}, got {tuple(tensor.shape)}")
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")


def check_sizes(group_sizes: Tensor, values: Tensor, name: str) -> None:
    """Raises TypeError or ValueError unless ``group_sizes`` [G] may cut the last dimension of ``values`` into groups."""
    check_integers(group_sizes=group_sizes)
    if group_sizes.dim() != 1:
        raise ValueError(f"group_sizes must have shape [G], got {tuple(group_sizes.shape)}")
    if group_sizes.device != values.device:
        raise ValueError(f"group_sizes must be on the device of {name}, {values.device}, got {group_sizes.device}")
    if values_readable(group_sizes):
        if (group_sizes < 0).any():
            raise ValueError(f"group_sizes must not be negative, got {group_sizes.min().item()}")
        if group_sizes.sum() != values.shape[-1]:
            total, R = int(group_sizes.sum()), values.shape[-1]
            raise ValueError(f"group_sizes must add up to the {R} responses of {name}, got {total}")


def checked_offsets(offsets: Tensor, steps: Tensor, name: str) -> Tensor:
    """``offsets`` [R+1] as int64, if they may cut the first dimension of ``steps`` into responses.

    Raises:
        TypeError, ValueError: naming offsets; their values where they may be read.
    """
    check_integers(offsets=offsets)
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"offsets must have shape [R+1], got {tuple(offsets.shape)}")
    if offsets.device != steps.device:
        raise ValueError(f"offsets must be on the device of {name}, {steps.device}, got {offsets.device}")
    ops.check_offsets(offsets, steps.shape[0])
    return offsets.to(torch.int64)
