"""Shards of DTensor parameters: their local tensors, and where their elements lie in the whole parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .reference import STRATUM

if dist.is_available():
    from torch.distributed.tensor import DTensor, Partial
else:
    DTensor = None

_shards: Any = WeakIdKeyDictionary()


@dataclass(frozen=True)
class Shard:
    """This rank's box of a DTensor parameter.

    ``placement`` is what the ops take: (local block, global block, offset, row offset); element e of the shard is element
    ``e // local block * global block + offset + e % local block`` of the parameter, and row r is row ``row offset + r``.
    """

    mesh: Any
    placements: tuple[Any, ...]
    global_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    starts: tuple[int, ...]
    placement: tuple[int, int, int, int]

    @staticmethod
    def of(p: Tensor) -> Shard | None:
        """The shard that ``p`` is, or None for a plain tensor.

        Raises:
            ValueError: a partial placement, or a box cut in more than two dimensions.
        """
        if DTensor is None or not isinstance(p, DTensor):
            return None
        if p not in _shards:
            _shards[p] = _measure(p)
        return _shards[p]

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
            ValueError: the shard's boundary cuts a stratum of 16 along the drawn dimension.
        """
        local = list(self.local_shape)
        drawn = 0 if row_mask else len(self.global_shape) - 1
        if shape != self.global_shape:
            start, size = self.starts[drawn], local[drawn]
            if size and (start % STRATUM or size % STRATUM):
                unit, cure = ("rows", "mask_unit='element'") if row_mask else ("elements", "mask_unit='row'")
                raise ValueError(
                    f"density < 1: the shard of {name} holds {unit} {start} to {start + size - 1} of dimension {drawn}, which cuts "
                    f"a stratum of {STRATUM}; use {cure}, density=1, or shards of a multiple of {STRATUM} {unit}"
                )
            local[drawn] = size * shape[drawn] // self.global_shape[drawn]
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        zeros = torch.zeros(local, dtype=dtype, device=self.mesh.device_type)
        return DTensor.from_local(
            zeros, self.mesh, self.placements, run_check=False, shape=torch.Size(shape), stride=stride
        )


def _measure(p: Any) -> Shard:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(isinstance(placement, Partial) for placement in p.placements):
        raise ValueError(f"parameters must not have partial placements, got {p.placements}")
    shape = tuple(p.shape)
    local, starts = compute_local_shape_and_global_offset(shape, p.device_mesh, p.placements)
    local, starts = tuple(local), tuple(starts)
    cut = [d for d in range(len(shape)) if local[d] != shape[d]]
    # Two levels address any box whose cuts leave at most one dimension that is walked between them.
    inner = cut[-1] if cut else 0
    first = next((d for d in range(inner) if local[d] > 1), inner)
    if math.prod(local) and any(d in cut for d in range(first + 1, inner)):
        raise ValueError(f"a parameter of shape {shape} sharded in dimensions {cut} cannot be addressed; shard fewer of them")
    tail = math.prod(shape[inner + 1 :])
    local_block = math.prod(local[inner:]) if cut else math.prod(shape)
    global_block = shape[inner] * tail if cut else local_block
    offset = sum(start * math.prod(shape[d + 1 :]) for d, start in enumerate(starts))
    placement = (local_block, global_block, offset, starts[0] if starts else 0)
    return Shard(p.device_mesh, tuple(p.placements), shape, local, starts, placement)
