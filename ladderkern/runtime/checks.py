"""What checks of arguments share: whether they may read values, and that tensors hold integers."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn


def values_readable(tensor: Tensor) -> bool:
    """Whether checks may read values: on CPU, on a device with LADDERKERN_CHECK=1 (it synchronises), never in a trace."""
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, nn.Parameter):
        return False
    return tensor.device.type == "cpu" or (os.environ.get("LADDERKERN_CHECK") == "1" and not tensor.is_meta)


def check_integers(**tensors: Tensor) -> None:
    """Raises TypeError unless every tensor holds integers (bool is none)."""
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got {tensor.dtype}")
