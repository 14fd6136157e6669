"""Bytes that sparse SPAM and the losses keep and need, as the operating system counts them, in a process of its own.

``python bench/memory.py element`` prints JSON (``--help`` lists what else there is to measure). The allocator gives every
freed block of 64 KB and more back at once, and huge pages are off, so resident memory is what is allocated and touched,
whoever allocates it: torch, Python or C++. What the first SPAM step of a process leaves in Python (some 0.6 MB, whatever
the size) counts as kept.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ladderkern
from ladderkern.discrepancy import (
    DistanceTable,
    cross_entropy_with_discrepancy,
    linear_cross_entropy_with_discrepancy,
    token_discrepancy_loss,
)

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
    return {
        "params": sum(p.numel() for p in params),
        "tensors": len(shapes),
        "state": state,
        "kept_beyond_state": kept - before - state,
        "peak_beyond_state": peak - before - state,
        "probe": _probe(),
    }


def _probe() -> int:
    """A block of 4 MB, as the measure sees it."""
    _reset_high_water()
    torch.ones(PROBE, dtype=torch.uint8)
    return _most_allocated() - _allocated()


def _of_logits(loss: Callable[..., Any]) -> Callable[..., Any]:
    def build(rows: int, columns: int, table: DistanceTable, dtype: torch.dtype, **_: int) -> Any:
        logits, labels = torch.randn((rows, columns)).to(dtype).requires_grad_(), torch.randint(table.num_codes, (rows,))
        return [logits], lambda: loss(logits, labels, table, image_start=0)

    return build


def _of_hidden(materialise: bool, trained: bool) -> Callable[..., Any]:
    def build(rows: int, columns: int, table: DistanceTable, dtype: torch.dtype, width: int) -> Any:
        hidden, labels = torch.randn((rows, width)).to(dtype).requires_grad_(), torch.randint(columns, (rows,))
        head = (torch.randn((columns, width)) / width**0.5).to(dtype).requires_grad_(trained)
        leaves = [hidden, head] if trained else [hidden]
        if materialise:
            return leaves, lambda: cross_entropy_with_discrepancy(hidden @ head.T, labels, table, image_start=0)
        return leaves, lambda: linear_cross_entropy_with_discrepancy(hidden, head, labels, table, image_start=0)

    return build


LOSSES = {
    "loss": _of_logits(token_discrepancy_loss),
    "joint": _of_logits(cross_entropy_with_discrepancy),
    "linear-trained": _of_hidden(materialise=False, trained=True),
    "linear-frozen": _of_hidden(materialise=False, trained=False),
    "materialised-trained": _of_hidden(materialise=True, trained=True),
    "materialised-frozen": _of_hidden(materialise=True, trained=False),
}


def measure_loss(name: str, rows: int, columns: int, codes: int, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes needed at the peak of a forward and a backward beyond the inputs and the gradients."""
    table = DistanceTable(torch.randn((codes, 32)), storage="table")
    build = LOSSES[name]
    _, loss = build(min(rows, 256), columns, table, dtype, width=width)
    loss().backward()  # code, threads and their scratch are in memory from here on
    leaves, loss = build(rows, columns, table, dtype, width=width)
    gc.collect()
    before = _allocated()
    _reset_high_water()
    loss().backward()
    peak = _most_allocated()
    gradients = sum(leaf.grad.untyped_storage().nbytes() for leaf in leaves)
    return {
        "rows": rows,
        "gradients": gradients,
        "peak_beyond_gradients": peak - before - gradients,
        "probe": _probe(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    for unit in ("element", "row"):
        options = kinds.add_parser(unit)
        options.add_argument("--shape", type=int, nargs=2, default=(2048, 2048))
        options.add_argument("--tensors", type=int, default=8)
    for name in LOSSES:
        options = kinds.add_parser(name)
        for size, default in (("rows", 1024), ("columns", 8192), ("codes", 8192), ("width", 256)):
            options.add_argument(f"--{size}", type=int, default=default)
        options.add_argument("--dtype", type=lambda text: getattr(torch, text), default=torch.float32)
    arguments = vars(parser.parse_args())
    what = arguments.pop("what")
    _count_exactly()
    if what in LOSSES:
        print(json.dumps(measure_loss(what, **arguments)))
    else:
        print(json.dumps(measure([tuple(arguments["shape"])] * arguments["tensors"], what)))
