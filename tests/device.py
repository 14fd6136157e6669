"""The interpreter's tests on a real GPU: each Triton launcher moves what it is given there, and what it made or wrote back.

LADDERKERN_TEST_ON=triton runs the Triton kernels, LADDERKERN_TEST_ON=cuda the ops of the CUDA library, where they have some.
LADDERKERN_TEST_DEVICE picks another device than "cuda": with "cpu", and the interpreter, the redirection itself is tested.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ladderkern.runtime import backend
from ladderkern.runtime.library import CUDA, OPS

CHOICE = os.environ.get("LADDERKERN_TEST_ON", "")
DEVICE = os.environ.get("LADDERKERN_TEST_DEVICE", "cuda")


def on_device(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """``implementation`` of an op for CPU tensors: storages move whole, so that strides, overlaps and guard bands are kept."""

    def call(*args: Any, **kwargs: Any) -> Any:
        moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def move(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            storage = value.untyped_storage()
            if storage._cdata not in moved:
                memory = torch.empty(0, dtype=torch.uint8).set_(storage)
                moved[storage._cdata] = memory, memory.to(DEVICE, copy=True)
            there = moved[storage._cdata][1].untyped_storage()
            empty = torch.empty(0, dtype=value.dtype, device=DEVICE)
            return empty.set_(there, value.storage_offset(), value.size(), value.stride())

        results = implementation(*tree_map(move, args), **tree_map(move, kwargs))
        for here, there in moved.values():
            here.copy_(there)
        return tree_map(lambda value: value.cpu() if isinstance(value, torch.Tensor) else value, results)

    return call


def redirect_launchers() -> None:
    """Have each op's ``.triton`` overload run on the GPU, by the implementation that LADDERKERN_TEST_ON names."""
    if CHOICE not in ("triton", "cuda"):
        raise ValueError(f"LADDERKERN_TEST_ON must be triton or cuda, got {CHOICE!r}")
    if CHOICE == "cuda" and not CUDA.loaded:
        raise RuntimeError(f"LADDERKERN_TEST_ON=cuda needs the CUDA library, which {CUDA.reason}")
    backend.interpreting = lambda: True  # Triton serves the CPU tensors of the tests, as it does in the interpreter
    for op in OPS.values():
        if op.launcher is None:
            continue
        module, function = importlib.import_module(op.launcher[0]), op.launcher[1]
        by_library = CHOICE == "cuda" and "cuda" in op.backends
        setattr(module, function, on_device(op.default if by_library else getattr(module, function)))
