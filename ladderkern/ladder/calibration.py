"""How long all-reduces of this process group take: the alpha and beta of its links, measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .comm import communicator
from .handles import Communicator
from .hardware import KIB, MIB, AlphaBeta, Link

SIZES = (16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB)


class Calibration(NamedTuple):
    """What was measured, the same on every rank, and the line through it."""

    fit: AlphaBeta
    world_size: int
    sizes: tuple[int, ...]  # bytes
    seconds: tuple[float, ...]  # the median of the slowest rank
    off: float  # the largest relative distance of the line from a measurement

    def link(self) -> Link:
        """For :func:`.predict`."""
        title = f"measured: {1e6 * self.fit.alpha:.3g} us + {1e-9 * self.fit.bandwidth:.3g} GB/s, {self.world_size} ranks"
        basis = f"measured here, the line is off by {self.off:.0%} at most; the hidden share is that of NVLink with NCCL"
        return Link(title, {self.world_size: (self.fit,)}, basis)


def calibrate(
    group: Any, sizes: Sequence[int] = SIZES, *, dtype: torch.dtype = torch.bfloat16, repeats: int = 11, warmup: int = 3
) -> Calibration:
    """Time all-reduces of a group: launched, then waited for, with nothing to hide behind.

    Call it on every rank at once. It waits for the device, as a measurement must.

    Args:
        group: a ProcessGroup, a DeviceMesh of one dimension, or a Communicator with a group, of at least 2 ranks. What
            communicates is what a ladder over this group would use.
        sizes: bytes of the tensors, at least two different ones; the line is meant for what lies between them.
        dtype: of the tensors.
        repeats: of each size; the median counts.
        warmup: all-reduces of each size before those.

    Raises:
        ValueError: a group of one rank, fewer than two different sizes, or one below an element.
    """
    sizes = tuple(sorted(set(sizes)))
    communicates = communicator(group)
    if communicates is None or communicates.group is None or communicates.group.size() < 2:
        raise ValueError("group must hold at least 2 ranks")
    if len(sizes) < 2 or sizes[0] < dtype.itemsize:
        raise ValueError(f"sizes must be at least two different numbers of bytes from {dtype.itemsize} on, got {sizes}")
    device = torch.device("cuda" if "nccl" in dist.get_backend_config(communicates.group) else "cpu")
    medians = []
    for size in sizes:
        tensor = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
        runs = [_seconds(communicates, tensor) for _ in range(warmup + repeats)]
        medians.append(statistics.median(runs[warmup:]))
    slowest = torch.tensor(medians, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=communicates.group)
    seconds = tuple(slowest.tolist())
    fit = fit_alpha_beta(sizes, seconds)
    off = max(abs(fit.seconds(size) / measured - 1) for size, measured in zip(sizes, seconds, strict=True))
    return Calibration(fit, communicates.group.size(), sizes, seconds, off)


def _seconds(communicates: Communicator, tensor: torch.Tensor) -> float:
    def settle() -> None:
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)

    settle()
    start = time.perf_counter()
    communicates.wait(communicates.launch(tensor, "all-reduce of the calibration"))
    settle()
    return time.perf_counter() - start


def fit_alpha_beta(sizes: Sequence[float], seconds: Sequence[float]) -> AlphaBeta:
    """The line alpha + S / bandwidth that is nearest to measured times, by the squares of the relative distances.

    A line that would fall, or start below zero, becomes flat, or starts at zero.
    """
    weights = [measured**-2 for measured in seconds]
    total = math.fsum(weights)
    mean_size = math.fsum(w * s for w, s in zip(weights, sizes, strict=True)) / total
    mean_time = math.fsum(w * t for w, t in zip(weights, seconds, strict=True)) / total
    covariance = math.fsum(w * (s - mean_size) * (t - mean_time) for w, s, t in zip(weights, sizes, seconds, strict=True))
    slope = covariance / math.fsum(w * (s - mean_size) ** 2 for w, s in zip(weights, sizes, strict=True))
    if slope <= 0:
        return AlphaBeta(mean_time, math.inf)
    alpha = mean_time - slope * mean_size
    if alpha >= 0:
        return AlphaBeta(alpha, 1 / slope)
    squares = math.fsum(w * s * s for w, s in zip(weights, sizes, strict=True))
    return AlphaBeta(0.0, squares / math.fsum(w * s * t for w, s, t in zip(weights, sizes, seconds, strict=True)))
