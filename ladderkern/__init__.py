"""ladderkern: fused SPAM, token discrepancy, PRM step scores and ladder residual for PyTorch."""

__version__ = "0.1.0"

from . import spam
from .runtime.backend import BackendUnavailable, backend, explain
from .runtime.info import info
from .spam import SPAM

__all__ = ["SPAM", "BackendUnavailable", "__version__", "backend", "explain", "info", "spam"]
