"""Memory traffic of Triton kernels without a GPU: every load and store is counted while the interpreter runs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

SECTOR = 32  # bytes: the least that the memory of a GPU moves


class Launch(NamedTuple):
    """One launch of one kernel, in bytes.

    Attributes:
        loaded: what its programs read, each element once a program, and once a launch of the arguments that all programs share.
        reloaded: what was read again: it comes from a cache, if the caches hold it.
        stored: what they wrote, every time.
        moved: the 32-byte sectors that the launch touched, read or written: what memory moves at least.
    """

    kernel: str
    programs: int
    loaded: int
    reloaded: int
    stored: int
    moved: int


class _Counter:
    """Accesses of one launch: those of the running program, and what the ones before it add up to."""

    def __init__(self, kernel: str, shared: list[tuple[int, int]]) -> None:
        self.kernel, self.shared, self.programs = kernel, shared, 0
        self.requested = self.loaded = self.stored = 0
        self._loads: list[tuple[int, np.ndarray]] = []  # of this program: (bytes an element, addresses)
        self._common: dict[int, list[np.ndarray]] = {}  # of arguments that all programs share, by bytes an element
        self._sectors: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def begin_program(self) -> None:
        self._end_program()
        self.programs += 1

    def load(self, addresses: np.ndarray, size: int) -> None:
        self.requested += size * addresses.size
        self._loads.append((size, addresses))
        self._sectors[0].append(np.unique(addresses // SECTOR))

    def store(self, addresses: np.ndarray, size: int) -> None:
        self.stored += size * addresses.size
        self._sectors[1].append(np.unique(addresses // SECTOR))

    def result(self) -> Launch:
        self._end_program()
        loaded = self.loaded + sum(size * _count(parts) for size, parts in self._common.items())
        moved = SECTOR * sum(map(_count, self._sectors))
        return Launch(self.kernel, self.programs, loaded, self.requested - loaded, self.stored, moved)

    def _end_program(self) -> None:
        for size in {size for size, _ in self._loads}:
            addresses = np.unique(np.concatenate([part for width, part in self._loads if width == size]))
            common = np.zeros(addresses.shape, dtype=bool)
            for start, end in self.shared:
                common |= (addresses >= start) & (addresses < end)
            self._common.setdefault(size, []).append(addresses[common])
            self.loaded += size * int((~common).sum())
        self._loads.clear()


def _count(parts: list[np.ndarray]) -> int:
    return int(np.unique(np.concatenate(parts)).size) if parts else 0


@contextmanager
def counted_traffic(shared: Collection[str] = ()) -> Iterator[list[Launch]]:
    """Within, the traffic of every Triton kernel that runs in the interpreter is appended to the list, a launch an entry.

    Args:
        shared: names of kernel arguments that all programs read and that caches hold, as weights: a byte counts once a launch.

    Raises:
        RuntimeError: Triton compiles kernels in this process: ``TRITON_INTERPRET=1`` was not set when it was imported; or a
            kernel runs atomic operations, which are not counted.
    """
    import triton
    from triton.runtime import interpreter

    if not triton.knobs.runtime.interpret:
        raise RuntimeError("traffic is counted in Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported")
    launches: list[Launch] = []
    running: list[_Counter] = []
    builder: Any = interpreter.interpreter_builder
    launch, begin, load, store = (
        interpreter.GridExecutor.__call__, builder.set_grid_idx, builder.create_masked_load, builder.create_masked_store
    )  # fmt: skip

    def counted_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        tensors = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        running.append(_Counter(self.fn.__name__, [_span(tensors[name]) for name in shared if tensors.get(name) is not None]))
        launch(self, *args, **kwargs)
        launches.append(running.pop().result())

    def counted_program(*place: int) -> None:
        running[-1].begin_program()
        begin(*place)

    def counted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        running[-1].load(pointers.data[mask.data], _bytes(pointers))
        return load(pointers, mask, *rest)

    def counted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        running[-1].store(pointers.data[mask.data], _bytes(pointers))
        return store(pointers, value, mask, *rest)

    changes: dict[str, Any] = {
        "set_grid_idx": counted_program,
        "create_masked_load": counted_load,
        "create_masked_store": counted_store,
        "create_atomic_rmw": _refuse,
        "create_atomic_cas": _refuse,
    }
    with mock.patch.object(interpreter.GridExecutor, "__call__", counted_launch), mock.patch.multiple(builder, **changes):
        yield launches


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses that a contiguous tensor takes: (first, end)."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def _bytes(pointers: Any) -> int:
    """Bytes of an element; a bool takes one."""
    return max(8, pointers.get_element_ty().primitive_bitwidth) // 8


def _refuse(*_: Any) -> None:
    raise RuntimeError("atomic operations are not counted")
