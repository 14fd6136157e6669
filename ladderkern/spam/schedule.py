"""The re-warm-up after each momentum reset, for plots and for those who schedule around it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference


def warmup_scale(steps: Tensor, *, reset_interval: int = 500, warmup_steps: int = 150) -> Tensor:
    """The factor on the learning rate at each of the given steps.

    Args:
        steps: 1-based step numbers, any integer dtype.                                                            [...]
        reset_interval: length of a cycle in steps; 0 = never reset.
        warmup_steps: W, length of the ramp after each reset.

    Returns:
        float64: s(k) = 0.01 + 0.99 sin^2(pi k / (2 (W + 1))) for k < W after a reset, 1 elsewhere.                   [...]

    Raises:
        ValueError: a negative argument.

    Source: the published code's CosineDecay in closed form (arXiv 2501.06842).

    >>> warmup_scale(torch.tensor([499, 500, 650])).tolist()
    [1.0, 0.01, 1.0]
    """
    for name, value in (("reset_interval", reset_interval), ("warmup_steps", warmup_steps)):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    cycle, k = reference.phase(steps, reset_interval)
    return reference.warmup(cycle, k, warmup_steps, torch.float64)
