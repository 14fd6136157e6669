"""SPAM: Adam with momentum reset, spike clipping and sparse momentum (Huang et al. 2025, arXiv 2501.06842)."""

from .masks import mask
from .optimizer import SPAM
from .schedule import warmup_scale

__all__ = ["SPAM", "mask", "warmup_scale"]
