"""Ladder residual (Zhang et al. 2025, arXiv 2501.06589): residual norms, and all-reduces behind compute."""

from .comm import ProcessGroupCommunicator
from .handles import Collective, Communicator
from .instruments import DelayedCommunicator, Event, RecordingCommunicator
from .linear import column_linear
from .llama import to_ladder
from .loading import from_pretrained
from .norm import add_rms_norm, rms_norm
from .parallel import tensor_parallel
from .saving import save_pretrained
from .stack import LadderStack
from .symmetric import SymmetricMemoryCommunicator

__all__ = [
    "Collective",
    "Communicator",
    "DelayedCommunicator",
    "Event",
    "LadderStack",
    "ProcessGroupCommunicator",
    "RecordingCommunicator",
    "SymmetricMemoryCommunicator",
    "add_rms_norm",
    "column_linear",
    "from_pretrained",
    "rms_norm",
    "save_pretrained",
    "tensor_parallel",
    "to_ladder",
]
