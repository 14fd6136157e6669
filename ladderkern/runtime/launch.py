"""What every Triton launcher needs: tables on the device, uploaded once, and the order in which kernels walk tensors."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """One uploaded table. ``host`` is kept because a captured graph reads it again at each replay."""

    data: Tensor
    host: Tensor
    plan: Any
    ready: Any = None
    stream: int = 0


class Recent:
    """Values found again by their keys, from any thread; the least recently used are dropped."""

    def __init__(self, size: int = 48) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """The value of ``key``, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        """Keep ``value``, in place of the one that was not asked for the longest."""
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._size:
                self._values.popitem(last=False)


class TableCache:
    """Small device tables, found again by a key; the least recently used are dropped.

    Attributes:
        uploads: tables made so far. A step whose pointers have not changed adds none.
    """

    def __init__(self, size: int = 48) -> None:
        self.uploads = 0
        self._tables = Recent(size)
        self._captured: list[Table] = []  # graphs outlive any cache: what they read stays

    def get(self, key: Hashable, device: torch.device, make: Callable[[], tuple[Tensor, Any]]) -> Table:
        """The table of ``key`` on ``device``; ``make`` returns its CPU tensor and the host's own notes about it."""
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        table: Table | None = self._tables.get((device, key))
        if table is None:
            table = self._upload(device, *make())
            if not capturing:  # the device side of a captured upload is filled only when its graph is replayed
                self._tables.put((device, key), table)
        elif not capturing:
            _wait(table, device)
        if capturing:
            self._captured.append(table)
        return table

    def _upload(self, device: torch.device, host: Tensor, plan: Any) -> Table:
        self.uploads += 1
        if device.type != "cuda":
            return Table(host, host, plan)
        host = host.pin_memory()
        data = host.to(device, non_blocking=True)
        stream = torch.cuda.current_stream(device)
        capturing = torch.cuda.is_current_stream_capturing()
        return Table(data, host, plan, None if capturing else stream.record_event(), stream.cuda_stream)


def _wait(table: Table, device: torch.device) -> None:
    """Let another stream than the uploading one wait for the upload, and keep the memory until it has read it."""
    if table.ready is None:
        return
    stream = torch.cuda.current_stream(device)
    if stream.cuda_stream != table.stream:
        stream.wait_event(table.ready)
        table.data.record_stream(stream)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` the current one: Triton launches on the current device, whatever its arguments are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def walk_together(tensors: Sequence[Tensor]) -> bool:
    """Whether walking each tensor's memory from its start meets the same elements at the same time, each once."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    strides = tensors[0].stride()
    return all(tensor.stride() == strides for tensor in tensors) and _dense(tensors[0])


def _dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def power_of_two(n: int, least: int, most: int) -> int:
    """The smallest power of two of at least ``n``, held between two powers of two."""
    return max(least, min(most, 1 << max(n - 1, 0).bit_length()))


def stand_ins(tensors: Sequence[Tensor], written: Sequence[bool], copies: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Contiguous tensors for a kernel; (original, stand-in) of those that it writes are added to ``copies``."""
    fresh = [tensor.contiguous() for tensor in tensors]
    for tensor, stand_in, changes in zip(tensors, fresh, written, strict=True):
        if changes and stand_in is not tensor:
            copies.append((tensor, stand_in))
    return fresh


def double_bits(x: float) -> int:
    """The bits of a double as an int: a launch has no argument type for doubles."""
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def signed_word(word: int) -> int:
    """The low 32 bits as a signed number: a launch types its integer arguments by their size."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
