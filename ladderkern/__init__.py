"""ladderkern: fused SPAM, token discrepancy, PRM step scores and ladder residual for PyTorch."""

__version__ = "0.1.0"

from . import discrepancy, ladder, prm, spam
from .discrepancy import (
    DistanceTable,
    TokenDiscrepancyLoss,
    cross_entropy_with_discrepancy,
    linear_cross_entropy_with_discrepancy,
    token_discrepancy_loss,
)
from .ladder import add_rms_norm, rms_norm
from .runtime.backend import BackendUnavailable, backend, explain
from .runtime.info import info
from .spam import SPAM

__all__ = [
    "SPAM",
    "BackendUnavailable",
    "DistanceTable",
    "TokenDiscrepancyLoss",
    "__version__",
    "add_rms_norm",
    "backend",
    "cross_entropy_with_discrepancy",
    "discrepancy",
    "explain",
    "info",
    "ladder",
    "linear_cross_entropy_with_discrepancy",
    "prm",
    "rms_norm",
    "spam",
    "token_discrepancy_loss",
]
