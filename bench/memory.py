"""Bytes that sparse SPAM keeps and needs, as the operating system counts them, in a process of its own.

``python bench/memory.py element`` prints JSON. The allocator gives every freed block of 64 KB and more back at once,
and huge pages are off, so resident memory is what is allocated and touched, whoever allocates it: torch, Python or C++.
What the first step of a process leaves in Python (some 0.6 MB, whatever the size) counts as kept.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
from pathlib import Path

import torch

import ladderkern

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
PR_SET_THP_DISABLE = 41
PROBE = 4 << 20


def _kilobytes(source: str, name: str) -> int:
    for line in Path(f"/proc/self/{source}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/{source} shows no {name}")


def _allocated() -> int:
    """Bytes resident now, counted page by page, without the pages of files (code that was read in)."""
    return 1024 * _kilobytes("smaps_rollup", "Anonymous")


def _most_allocated() -> int:
    """The same at its highest since :func:`_reset_high_water`; pages of files only come, so now is their highest."""
    files = _kilobytes("smaps_rollup", "Rss") - _kilobytes("smaps_rollup", "Anonymous")
    return 1024 * (_kilobytes("status", "VmHWM") - files)


def _reset_high_water() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _count_exactly() -> None:
    libc = ctypes.CDLL(None)
    for setting in ((M_MMAP_THRESHOLD, 1 << 16), (M_TRIM_THRESHOLD, 0), (M_ARENA_MAX, 1)):
        libc.mallopt(*setting)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    # The kernel's running count, which the high-water mark is taken from, may lag by some pages a core.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    torch.set_num_threads(min(2, torch.get_num_threads()))


def _optimizer(shapes: list[tuple[int, int]], unit: str) -> ladderkern.SPAM:
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape)
    return ladderkern.SPAM(params, lr=1e-6, density=0.25, mask_unit=unit)


def measure(shapes: list[tuple[int, int]], unit: str) -> dict[str, int]:
    """Bytes of the state, of what is kept or needed at the peak of a step beyond it, and as seen of a block of 4 MB."""
    optimizer = _optimizer(shapes, unit)
    params = optimizer.param_groups[0]["params"]
    torch.optim.AdamW(params, lr=1e-6, fused=True).step()  # torch's code and threads are in memory from here on
    gc.collect()
    before = _allocated()
    optimizer.step()
    state = sum(t.untyped_storage().nbytes() for s in optimizer.state.values() for t in s.values())
    _reset_high_water()
    for _ in range(3):
        optimizer.step()
    peak, kept = _most_allocated(), _allocated()
    _reset_high_water()
    torch.ones(PROBE, dtype=torch.uint8)
    probe = _most_allocated() - _allocated()
    return {
        "params": sum(p.numel() for p in params),
        "tensors": len(shapes),
        "state": state,
        "kept_beyond_state": kept - before - state,
        "peak_beyond_state": peak - before - state,
        "probe": probe,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unit", choices=("element", "row"))
    parser.add_argument("--shape", type=int, nargs=2, default=(2048, 2048))
    parser.add_argument("--tensors", type=int, default=8)
    arguments = parser.parse_args()
    _count_exactly()
    print(json.dumps(measure([tuple(arguments.shape)] * arguments.tensors, arguments.unit)))
