"""The sparse-momentum masks, for those who want to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .checks import eligible
from .reference import STRATUM

MASK_UNITS = ("element", "row")


def sixteenths(density: Any) -> int:
    """16 * density as an int.

    Raises:
        ValueError: ``density`` is not a multiple of 1/16 in (0, 1].
    """
    if (
        not isinstance(density, (int, float)) or not 0 < density <= 1 or density * STRATUM % 1 != 0
    ):  # exact: 16 is a power of two
        raise ValueError(f"density must be a multiple of 1/16 in (0, 1], got {density}")
    return int(density * STRATUM)


def check_mask_unit(mask_unit: str) -> None:
    """Raises ValueError unless ``mask_unit`` is "element" or "row"."""
    if mask_unit not in MASK_UNITS:
        raise ValueError(f"mask_unit must be 'element' or 'row', got {mask_unit!r}")


def mask(
    shape: Sequence[int],
    density: float,
    *,
    seed: int = 0,
    index: int = 0,
    cycle: int = 0,
    mask_unit: str = "element",
) -> Tensor:
    """Which elements of a parameter hold moments and move in a cycle.

    A counter-based function of its arguments alone: no RNG state is read or changed, and every rank, device and sharding
    gets the same draw.

    Args:
        shape: global shape of the parameter.
        density: share drawn, a multiple of 1/16 in (0, 1]: exactly ``16 * density`` of every 16 consecutive elements along
            the last dimension (``"element"``) or rows along the first (``"row"``).
        seed: the optimizer's ``seed``.
        index: index of the parameter in the optimizer, counted over all groups.
        cycle: ``step // reset_interval``; 0 before the first reset.
        mask_unit: ``"element"`` or ``"row"``.

    Returns:
        bool tensor of ``shape`` on the CPU; all True where density does not apply (fewer than two dimensions, or a drawn
        dimension that is no multiple of 16).

    Raises:
        ValueError: density, mask_unit or cycle out of range.

    Source: sparse momentum of Huang et al. 2025 (arXiv 2501.06842), with exact counts and Philox4x32-10 draws.

    >>> ladderkern.spam.mask((2, 32), 0.25).sum(dim=1).tolist()
    [8, 8]
    """
    chosen = sixteenths(density)
    check_mask_unit(mask_unit)
    if cycle < 0:
        raise ValueError(f"cycle must be 0 or more, got {cycle}")
    row_mask = mask_unit == "row"
    if chosen == STRATUM or not eligible(shape, row_mask):
        return torch.ones(tuple(shape), dtype=torch.bool)
    drawn = reference.selection(torch.Size(shape), cycle, index, chosen, row_mask, seed)
    return drawn.clone()
