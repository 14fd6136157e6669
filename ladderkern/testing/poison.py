"""Uninitialised memory that shows: NaN in every fresh allocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within, ``torch.empty``, ``empty_like``, ``new_empty`` and their kin return NaN (integers: the largest value).

    An element that an op forgets to write is then NaN in its output, on every run. It is PyTorch's deterministic fill, done
    in the ``aten::empty`` kernels, so allocations of C++ code through the dispatcher are filled too. Ops without a
    deterministic form still run (with a warning), and the settings before are restored. Process-wide, not for one thread.
    """
    mode, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_deterministic_debug_mode(mode)
