"""What is installed here and which parts of it serve."""

from __future__ import annotations

import platform
from importlib import metadata

import torch
import torch.distributed as dist

from .backend import current, interpreting
from .library import CUDA, NATIVE


def _triton_version() -> str | None:
    """The installed Triton's version, without importing it; None where there is none."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


def info() -> dict[str, str]:
    """Versions, the CPU tier in use, and the status of each backend and communication library, as name -> text.

    ``python -m ladderkern info`` prints it.

    >>> ladderkern.info()["ladderkern"] == ladderkern.__version__
    True
    """
    from .. import __version__

    cuda = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else "")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    triton = _triton_version()
    distributed = dist.is_available()
    return {
        "ladderkern": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__} ({cuda or 'CPU build'}, {torch.get_num_threads()} threads)",
        "backend": current(),
        "native": f"loaded, CPU tier {NATIVE.tier}" if NATIVE.loaded else NATIVE.reason,
        "triton": (triton + (", interpreting" if interpreting() else "")) if triton else "not installed",
        "cuda library": f"loaded, built with CUDA {CUDA.version}" if CUDA.loaded else CUDA.reason,
        "gpu": ", ".join(gpus) or "none visible",
        "nccl": "available" if distributed and dist.is_nccl_available() else "not available",
        "gloo": "available" if distributed and dist.is_gloo_available() else "not available",
    }
