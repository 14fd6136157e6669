"""Inputs as users have them: every layout, any start offset, no elements at all, and guard bands around the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "transposed", "channels_last", "column_slice", "every_second", "expanded")
EMPTY_SHAPES = ((0,), (0, 16), (16, 0), (3, 0, 5))
_MARGIN = 128  # elements of guard band on each side: two cache lines of the widest dtype and more


def floats(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    layout: str = "contiguous",
    offset: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers of ``shape`` that depend on ``seed`` and ``shape`` alone, whatever the dtype, layout or device.

    Args:
        layout: one of ``LAYOUTS``, see :func:`laid_out`.
        offset: elements between the start of the allocation and the tensor: 1 misaligns it, 0..31 covers each vector width.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)
    return laid_out(values, layout, offset)


def laid_out(tensor: Tensor, layout: str, offset: int = 0) -> Tensor:
    """A copy of ``tensor`` whose memory is laid out as named and starts ``offset`` elements into its allocation.

    ``"transposed"``: the last two dimensions swapped in memory. ``"channels_last"``: of a 4-D or 5-D tensor.
    ``"column_slice"``: columns of a tensor 8 wider. ``"every_second"``: each second element of the last dimension.
    ``"expanded"``: the first entry of the first dimension, repeated with stride 0: the one layout that changes the values.

    Raises:
        ValueError: an unknown layout, or one that needs more dimensions.
    """
    shape = list(tensor.shape)
    least = {"contiguous": 0, "transposed": 2, "channels_last": 4, "column_slice": 1, "every_second": 1, "expanded": 1}
    if layout not in least:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if len(shape) < least[layout] or (layout == "channels_last" and len(shape) > 5):
        raise ValueError(f"layout {layout!r} does not apply to shape {tuple(shape)}")
    order = list(range(len(shape)))  # dimensions from the slowest to the fastest in memory
    room = list(shape)  # what the allocation holds along each dimension
    spacing = 1
    if layout == "transposed":
        order[-2:] = order[-1], order[-2]
    elif layout == "channels_last":
        order = [0, *range(2, len(shape)), 1]
    elif layout == "column_slice":
        room[-1] += 8
    elif layout == "every_second":
        room[-1] *= 2
        spacing = 2
    strides = [0] * len(shape)
    step = 1
    for d in reversed(order):
        strides[d] = step * (spacing if d == len(shape) - 1 else 1)
        step *= max(room[d], 1)
    if layout == "expanded":
        strides[0] = 0
    tensor = tensor.detach()
    base = tensor.new_zeros(offset + step)
    target = base.as_strided(shape, strides, offset)
    if layout == "expanded":
        if shape[0]:
            target[0].copy_(tensor[0])
    else:
        target.copy_(tensor)
    return target


@dataclass(frozen=True)
class Guarded:
    """A tensor inside a larger buffer whose every other byte is 0xFF: NaN in each float dtype, -1 in the integers."""

    tensor: Tensor
    buffer: Tensor

    def assert_untouched(self, what: str = "tensor") -> None:
        """Assert that every byte of the buffer outside the tensor is as it was, the gaps between its rows included."""
        inside = torch.zeros(self.buffer.numel(), dtype=torch.bool, device=self.buffer.device)
        inside[_element_offsets(self.tensor)] = True
        buffer_bytes = self.buffer.view(torch.uint8).view(self.buffer.numel(), self.buffer.element_size())
        written = (buffer_bytes != 0xFF).any(dim=1) & ~inside
        if written.any():
            first = int(written.nonzero()[0].item()) - self.tensor.storage_offset()
            count = int(written.sum().item())
            raise AssertionError(f"{what}: {count} elements outside it were written, the first {first} from its start")


def guarded(tensor: Tensor) -> Guarded:
    """A copy of ``tensor``, with its strides and its start relative to a vector of 32 elements, between guard bands.

    A read outside shows as NaN in the result; a write outside is found by :meth:`Guarded.assert_untouched`.
    """
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    start = _MARGIN + tensor.storage_offset() % 32
    size = tensor.element_size()
    raw = torch.full(((start + span + _MARGIN) * size,), 0xFF, dtype=torch.uint8, device=tensor.device)
    buffer = raw.view(tensor.dtype)
    inner = buffer.as_strided(tensor.shape, tensor.stride(), start)
    if tensor.numel():  # through the offsets, since a copy into an expanded view is refused
        buffer[_element_offsets(inner)] = tensor.detach().reshape(-1)
    return Guarded(inner, buffer)


def _element_offsets(tensor: Tensor) -> Tensor:
    """Where each element lies in its storage, in elements.  [numel] int64"""
    offsets = torch.tensor([tensor.storage_offset()], dtype=torch.int64, device=tensor.device)
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + torch.arange(n, device=tensor.device) * stride).reshape(-1)
    assert offsets.numel() == math.prod(tensor.shape)
    return offsets
