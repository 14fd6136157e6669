"""What checks of arguments share: whether they may read values, and how messages list dtypes."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn


def values_readable(tensor: Tensor) -> bool:
    """Whether checks may read values: on CPU, on a device with LADDERKERN_CHECK=1 (it synchronises), never in a trace."""
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, nn.Parameter):
        return False
    return tensor.device.type == "cpu" or (os.environ.get("LADDERKERN_CHECK") == "1" and not tensor.is_meta)


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Dtypes as messages list them."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
