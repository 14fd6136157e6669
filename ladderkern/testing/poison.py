"""Uninitialised memory that shows: NaN in every fresh allocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within, ``torch.empty``, ``empty_like``, ``new_empty`` and their kin return NaN (integers: the largest value).

    An element that an op forgets to write is then NaN in its output, on every run. It is PyTorch's deterministic fill, done
    in the ``aten::empty`` kernels, so allocations of C++ code through the dispatcher are filled too. Ops without a
    deterministic form still run (with a warning), and the settings before are restored. Process-wide, not for one thread.
    """
    switch: Any = torch.utils.deterministic  # its one attribute is set on the module's class, unseen by type checkers
    mode, fill = torch.get_deterministic_debug_mode(), switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switch.fill_uninitialized_memory = True
    try:
        yield
    finally:
        switch.fill_uninitialized_memory = fill
        torch.set_deterministic_debug_mode(mode)
