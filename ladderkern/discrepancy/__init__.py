"""Token discrepancy: how far off, in embedding space, a model's image tokens are (Li et al. 2025, MVoT, arXiv 2501.07542)."""

from .chameleon import chameleon_hidden, chameleon_logits
from .loss import (
    JointLoss,
    cross_entropy_with_discrepancy,
    linear_cross_entropy_with_discrepancy,
    token_discrepancy_loss,
)
from .module import TokenDiscrepancyLoss
from .table import DistanceTable

__all__ = [
    "DistanceTable",
    "JointLoss",
    "TokenDiscrepancyLoss",
    "chameleon_hidden",
    "chameleon_logits",
    "cross_entropy_with_discrepancy",
    "linear_cross_entropy_with_discrepancy",
    "token_discrepancy_loss",
]
