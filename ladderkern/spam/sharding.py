"""Shards of DTensor parameters: their local tensors, and where their elements lie in the whole parameter."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .reference import STRATUM

if dist.is_available():
    from torch.distributed.tensor import DTensor, Partial
else:
    DTensor = None  # type: ignore[assignment,misc]

_shards: Any = WeakIdKeyDictionary()


def is_sharded(kind: type) -> bool:
    """Whether tensors of this type are DTensors."""
    return DTensor is not None and issubclass(kind, DTensor)


@dataclass(frozen=True)
class Shard:
    """This rank's box of a DTensor parameter.

    ``placement`` is what the ops take: (local block, global block, offset, row offset); element e of the shard is element
    ``e // local block * global block + offset + e % local block`` of the parameter, and row r is row ``row offset + r``.
    ``pieces`` are the (start, size) into which each dimension is cut over all ranks, so that every rank raises alike.
    """

    mesh: Any
    placements: tuple[Any, ...]
    device: torch.device
    global_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    pieces: tuple[tuple[tuple[int, int], ...], ...]
    placement: tuple[int, int, int, int]

    @staticmethod
    def of(p: Any) -> Shard | None:
        """The shard that ``p`` is, or None for a plain tensor.

        Raises:
            ValueError: a partial placement, a shard that is no box, or a box cut in more than two dimensions.
        """
        if not is_sharded(type(p)):
            return None
        shard = _shards.get(p)
        if shard is None or shard.mesh is not p.device_mesh or shard.placements != p.placements:
            shard = _shards[p] = _measure(p)
        return shard

    def local(self, p: Any, grad: Any, *moments: Any) -> tuple[Tensor, ...]:
        """The local tensors of parameter, gradient and moments.

        Raises:
            TypeError: a gradient or moment that is no DTensor.
        """
        for what, tensor in (("gradient", grad), *(("moment", moment) for moment in moments)):
            if not isinstance(tensor, DTensor):
                raise TypeError(f"the {what} of a DTensor parameter must be a DTensor, got {type(tensor).__name__}")
        if grad.placements != self.placements:
            grad = grad.redistribute(self.mesh, self.placements)
        return tuple(tensor.to_local() for tensor in (p, grad, *moments))

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, row_mask: bool, name: str) -> Tensor:
        """Zero moments of global ``shape``, sharded like the parameter.

        Raises:
            ValueError: a shard's boundary, on whichever rank, cuts a stratum of 16 along the drawn dimension.
        """
        local = list(self.local_shape)
        if shape != self.global_shape:
            drawn = 0 if row_mask else len(shape) - 1
            for start, size in self.pieces[drawn]:
                if size and (start % STRATUM or size % STRATUM):
                    raise ValueError(_cut_stratum(name, row_mask, drawn, start, size))
            if len(local) == len(shape):
                local[drawn] = local[drawn] // STRATUM * (shape[drawn] // (self.global_shape[drawn] // STRATUM))
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        zeros = torch.zeros(local, dtype=dtype, device=self.device)
        whole: dict[str, Any] = {"shape": torch.Size(shape), "stride": stride}
        # from_local moves to the mesh's device, which is not that of a parameter that FSDP2 offloads to the CPU.
        return DTensor.from_local(zeros, self.mesh, self.placements, run_check=False, **whole).to(self.device)


def _cut_stratum(name: str, row_mask: bool, drawn: int, start: int, size: int) -> str:
    if row_mask:
        unit, cure = "rows", "mask_unit='element' (any Shard(0) suits it)"
    else:
        unit, cure = "elements", "mask_unit='row' (any sharding but of the rows suits it)"
    return (
        f"density < 1: a shard of {name} holds the {size} {unit} {start} to {start + size - 1} of dimension {drawn}, "
        f"which cuts a stratum of {STRATUM}; use {cure}, density=1, or shards of a multiple of {STRATUM} {unit}"
    )


def _measure(p: Any) -> Shard:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements, shape = p.device_mesh, tuple(p.placements), tuple(p.shape)
    if any(isinstance(placement, Partial) for placement in placements):
        raise ValueError(f"parameters must not have partial placements, got {placements}")
    held = p.to_local()
    pieces = tuple(_pieces(shape, dim, tuple(mesh.shape), placements) for dim in range(len(shape)))
    _check_addressable(shape, pieces)
    if mesh.get_coordinate() is None:  # a rank outside the mesh: its local tensor is [0], whatever the parameter's dimensions
        return Shard(mesh, placements, held.device, shape, tuple(held.shape), pieces, (0, 0, 0, 0))
    local, starts = map(tuple, compute_local_shape_and_global_offset(shape, mesh, placements))
    if local != tuple(held.shape):
        raise ValueError(
            f"the shard of a parameter of shape {shape} placed by {placements} must be {local}, got {tuple(held.shape)}"
        )
    cut = [d for d in range(len(shape)) if local[d] != shape[d]]
    # Two levels: blocks that are contiguous from the last cut dimension on, at equal distances.
    inner = cut[-1] if cut else 0
    local_block = math.prod(local[inner:])
    global_block = math.prod(shape[inner:])
    offset = sum(start * math.prod(shape[d + 1 :]) for d, start in enumerate(starts))
    placement = (local_block, global_block, offset, starts[0] if starts else 0)
    return Shard(mesh, placements, held.device, shape, local, pieces, placement)


@lru_cache(maxsize=4096)
def _pieces(
    shape: tuple[int, ...], dim: int, mesh_shape: tuple[int, ...], placements: tuple[Any, ...]
) -> tuple[tuple[int, int], ...]:
    """(start, size) of the pieces into which all ranks together cut one dimension, in order.

    Raises:
        ValueError: a piece is not contiguous, as that of a strided placement can be.
    """
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    cutting = [i for i, placement in enumerate(placements) if getattr(placement, "dim", None) == dim]
    sizes, cuts = [mesh_shape[i] for i in cutting], [placements[i] for i in cutting]
    pieces = []
    for coordinate in itertools.product(*map(range, sizes)):
        local, starts = _compute_local_shape_and_global_offset(shape, sizes, list(coordinate), cuts)
        pieces.append((starts[dim], local[dim]))
    end = 0
    for start, size in sorted(piece for piece in pieces if piece[1]):
        if start != end:
            raise ValueError(
                f"dimension {dim} of a parameter of shape {shape} placed by {placements} is not cut into whole pieces"
            )
        end += size
    return tuple(sorted(pieces))


def _check_addressable(shape: tuple[int, ...], pieces: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    sizes = [{size for _, size in ranks if size} for ranks in pieces]
    cut = [d for d in range(len(shape)) if sizes[d] != {shape[d]} and sizes[d]]
    outer = next((d for d in range(len(shape)) if max(sizes[d], default=0) > 1), len(shape))
    # The last cut dimension ends the inner blocks, dimension `outer` walks between them: one cut in between is one too many.
    if any(d > outer for d in cut[:-1]):
        raise ValueError(f"a parameter of shape {shape} sharded in dimensions {cut} cannot be addressed; shard fewer of them")
