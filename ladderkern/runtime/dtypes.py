"""The dtype rule of all features, and how messages list dtypes."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """dtype of all arithmetic on numbers of ``dtype``: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    """Dtypes as messages list them."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
