"""Ladder residual (Zhang et al. 2025, arXiv 2501.06589): residual norms, and all-reduces behind compute."""

from .calibration import Calibration, calibrate
from .comm import ProcessGroupCommunicator
from .handles import Collective, Communicator
from .hardware import AlphaBeta
from .instruments import DelayedCommunicator, Event, RecordingCommunicator
from .linear import column_linear
from .llama import to_ladder
from .loading import from_pretrained
from .norm import add_rms_norm, rms_norm
from .parallel import tensor_parallel
from .predictor import Prediction, predict
from .saving import save_pretrained
from .stack import LadderStack
from .symmetric import SymmetricMemoryCommunicator
from .timeline import Timeline, timeline

__all__ = [
    "AlphaBeta",
    "Calibration",
    "Collective",
    "Communicator",
    "DelayedCommunicator",
    "Event",
    "LadderStack",
    "Prediction",
    "ProcessGroupCommunicator",
    "RecordingCommunicator",
    "SymmetricMemoryCommunicator",
    "Timeline",
    "add_rms_norm",
    "calibrate",
    "column_linear",
    "from_pretrained",
    "predict",
    "rms_norm",
    "save_pretrained",
    "tensor_parallel",
    "timeline",
    "to_ladder",
]
