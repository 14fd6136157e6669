"""How a distance table is made: in float64, block by block, so that nothing but the result is large."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..runtime.checks import check_integers


class Codes:
    """The codebook read in blocks: float64, in the order of the logits' columns, and centred.

    Distances do not notice a mean, and without it differences have fewer digits to lose.
    """

    def __init__(self, codebook: Tensor, order: Any) -> None:
        self.codebook = _checked_codebook(codebook)
        self.order = None if order is None else _checked_order(order, self.codebook)
        self.shape = self.codebook.shape
        self.tile = max(1, min(1024, 2**20 // self.shape[1]))  # neither [tile, d] nor [tile, tile] is over 8 MB
        self.starts = range(0, self.shape[0], self.tile)
        self.mean = torch.zeros(self.shape[1], dtype=torch.float64, device=codebook.device)
        sums = [self[start : start + self.tile].sum(dim=0) for start in self.starts]
        self.mean = torch.stack(sums).sum(dim=0) / self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        block = self.codebook[rows if self.order is None else self.order[rows]]
        return block.to(torch.float64, copy=True).sub_(self.mean)

    def float32(self) -> Tensor:
        """All of them.  [N, d]"""
        codes = torch.empty(self.shape, dtype=torch.float32, device=self.codebook.device)
        for start in self.starts:
            codes[start : start + self.tile] = self[start : start + self.tile]
        return codes


def _checked_codebook(codebook: Tensor) -> Tensor:
    if not isinstance(codebook, Tensor) or not codebook.dtype.is_floating_point:
        raise TypeError(f"codebook must be a floating-point tensor, got {getattr(codebook, 'dtype', type(codebook).__name__)}")
    if codebook.dim() != 2 or 0 in codebook.shape:
        raise ValueError(f"codebook must have shape [N, d] with N and d of 1 or more, got {tuple(codebook.shape)}")
    codebook = codebook.detach()
    for row in range(0, codebook.shape[0], 4096):
        if not torch.isfinite(codebook[row : row + 4096]).all():
            raise ValueError("codebook must be finite, got NaN or infinity in it")
    return codebook


def _checked_order(order: Any, codebook: Tensor) -> Tensor:
    """The permutation as an int64 tensor on the codebook's device."""
    order = torch.as_tensor(order, device=codebook.device).detach()
    check_integers(order=order)
    N = codebook.shape[0]
    if order.shape != (N,):
        raise ValueError(f"order must have shape ({N},), one code for each image column, got {tuple(order.shape)}")
    order = order.to(torch.int64)
    if not torch.equal(order.sort().values, torch.arange(N, device=order.device)):
        raise ValueError(f"order must be a permutation of 0..{N - 1}, each code once, got others or repeats")
    return order


def exact(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Distances between float64 codes [n, d] and [m, d].  [n, m]"""
    squared = torch.addmm(b.square().sum(dim=1)[None, :], a, b.T, alpha=-2.0).add_(a.square().sum(dim=1)[:, None])
    squared.clamp_(min=0.0)
    if metric == "euclidean":
        return squared.sqrt_()
    return squared.div_(a.shape[1]) if metric == "mse" else squared


def largest_distance(codes: Codes, metric: str) -> float:
    """A bound of all distances: twice the radius of the centred codes.

    Raises:
        ValueError: squared, it is no float32 number.
    """
    radii = [codes[start : start + codes.tile].square().sum(dim=1).max() for start in codes.starts]
    squared = 4.0 * torch.stack(radii).max().item()
    if not squared < torch.finfo(torch.float32).max:
        radius = math.sqrt(squared) / 2
        raise ValueError(
            f"codebook must have squared distances that are finite in float32, got codes {radius:.3g} from their mean"
        )
    return {"euclidean": math.sqrt(squared), "mse": squared / codes.shape[1]}.get(metric, squared)


def centre(codes: Codes, metric: str, scale: float, dtype: torch.dtype) -> float:
    """About the mean distance of up to 1024 evenly spaced codes to each other.

    Rounded such that (0 - centre) / scale is a number of ``dtype`` and of float32: distances of 0 are then stored exactly.
    """
    N = codes.shape[0]
    count = min(N, codes.tile)
    sample = codes[torch.arange(count, device=codes.codebook.device) * N // count]
    mean = exact(sample, sample, metric).fill_diagonal_(0.0).sum() / max(count * (count - 1), 1)
    return (mean / scale).float().to(dtype).item() * scale


def power_of_two_scale(bound: float, dtype: torch.dtype) -> float:
    """A power of two that brings every |D - offset| <= bound below 1; in float16 below 2^14, so that few are subnormal."""
    if bound == 0.0:
        return 1.0
    exponent = math.frexp(bound)[1]  # bound < 2^exponent
    return math.ldexp(1.0, max(exponent - (14 if dtype == torch.float16 else 0), -126))


def distance_table(codes: Codes, metric: str, offset: float, scale: float, dtype: torch.dtype) -> Tensor:
    """(D - offset) / scale, the diagonal of D being 0: the upper triangle in tiles, the lower one mirrored.  [N, N]"""
    N, tile = codes.shape[0], codes.tile
    table = torch.empty((N, N), dtype=dtype, device=codes.codebook.device)
    for i in codes.starts:
        rows = codes[i : i + tile]
        for j in range(i, N, tile):
            block = exact(rows, codes[j : j + tile], metric)
            if i == j:
                block.fill_diagonal_(0.0)
            stored = block.sub_(offset).div_(scale).to(dtype)
            table[i : i + tile, j : j + tile] = stored
            table[j : j + tile, i : i + tile] = stored.T
    return table
