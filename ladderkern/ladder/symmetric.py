"""All-reduces of small messages through symmetric memory, on GPUs that NVLink joins: a third of NCCL's latency.

torch's symmetric-memory kernels run on the current stream. Here they run on a stream of their own, of high priority, and events
order it after what fills the message and before what reads the sum, so that compute goes on meanwhile and no host waits.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .capture import check_ready
from .handles import Communicator, Handle

MIB = 1 << 20
# The largest message in bytes of each algorithm, by world size, on NVLink machines of the Hopper generation. One-shot: what
# vLLM's fused all-reduce takes on sm_90. Two-shot and multimem: what vLLM's torch symmetric-memory all-reduce takes. Larger
# messages, and other world sizes, are NCCL's.
ONE_SHOT_BYTES = {2: 32 * MIB, 4: 2 * MIB, 8: MIB // 2}
SYMMETRIC_BYTES = {2: 64 * MIB, 4: 32 * MIB, 6: 64 * MIB, 8: 64 * MIB}
DTYPES = (torch.bfloat16, torch.float32)  # that torch's kernels are written for
VECTOR_BYTES = 16


def algorithm(num_bytes: int, dtype: torch.dtype, world_size: int, multicast: bool) -> str | None:
    """Which all-reduce serves a message on an NVLink machine: "one_shot", "two_shot", "multimem", or None for NCCL.

    A function of what is the same on every rank, so that all choose alike.
    """
    if dtype not in DTYPES or num_bytes == 0 or num_bytes > SYMMETRIC_BYTES.get(world_size, 0):
        return None
    if num_bytes <= ONE_SHOT_BYTES.get(world_size, 0):
        return "one_shot" if num_bytes % VECTOR_BYTES == 0 else None
    if num_bytes % (VECTOR_BYTES * world_size):
        return None
    return "multimem" if multicast else "two_shot"


class Seat(NamedTuple):
    """Where one rank runs."""

    host: str
    device: int
    links: tuple[int, ...]  # NVLinks to each device of the host
    multicast: bool


def joined(seats: list[Seat]) -> bool:
    """Whether all ranks run on GPUs of one host, each joined to each by NVLink."""
    devices = [seat.device for seat in seats]
    if len({seat.host for seat in seats}) > 1 or len(set(devices)) < len(devices):
        return False
    pairs = [(seat, device) for seat in seats for device in devices if device != seat.device]
    return all(device < len(seat.links) and seat.links[device] > 0 for seat, device in pairs)


class SymmetricMemoryCommunicator(Communicator):
    """torch's one-shot, two-shot and multimem all-reduces beside compute, where they serve; the other messages go to ``other``.

    Sums are the same bits on every rank: the kernels add in the order of the ranks, or one adds for all.

    Args:
        group: a ProcessGroup.
        other: what takes messages for which :func:`algorithm` names none, and all if the ranks are not joined by NVLink.

    The first launch finds out how the ranks are joined, and a buffer is made whenever a message is larger than all before, both
    by all ranks together and with a wait on the host: a CUDA graph can be captured once its messages have been sent before.
    """

    def __init__(self, group: Any, other: Communicator) -> None:
        self.group = group
        self.other = other
        self.seats: list[Seat] | None = None
        self.stream: Any = None
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def launch(self, tensor: Tensor, name: Any = "all-reduce") -> Handle:
        """As of Communicator."""
        chosen = self._algorithm(tensor) if tensor.is_cuda else None
        if chosen is None:
            return Handle(tensor, name, self.other.launch(tensor, name))
        message = self._message(tensor)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):  # each kernel ends with a barrier: the next may use the buffer
            _sum(chosen, message, tensor.view(-1), self.group.group_name)
            return Handle(tensor, name, self.stream.record_event())

    def wait(self, handle: Handle) -> None:
        """The current stream goes on after the sum; the host does not wait."""
        work = handle.take()
        if isinstance(work, Handle):
            self.other.wait(work)
        else:
            torch.cuda.current_stream().wait_event(work)

    def _algorithm(self, tensor: Tensor) -> str | None:
        if self.seats is None:
            check_ready(tensor, "the first sum over symmetric memory")
            self.seats = _seats(self.group, tensor.device.index)
            self.stream = torch.cuda.Stream(tensor.device, priority=-1)
        if not joined(self.seats):
            return None
        multicast = all(seat.multicast for seat in self.seats)
        return algorithm(tensor.numel() * tensor.element_size(), tensor.dtype, len(self.seats), multicast)

    def _message(self, tensor: Tensor) -> Tensor:
        """The symmetric buffer as a message like ``tensor``, flat."""
        from torch.distributed import _symmetric_memory as symmetric_memory

        num_bytes = tensor.numel() * tensor.element_size()
        if self.buffer.numel() < num_bytes:
            check_ready(tensor, f"a symmetric buffer for a message of {num_bytes} bytes")
            size = 1 << (num_bytes - 1).bit_length()  # few sizes: each costs a rendezvous
            self.stream.synchronize()  # nobody uses the one before
            self.buffer = symmetric_memory.empty(size, dtype=torch.uint8, device=tensor.device)
            symmetric_memory.rendezvous(self.buffer, self.group)
        return self.buffer[:num_bytes].view(tensor.dtype)


def _sum(chosen: str, message: Tensor, tensor: Tensor, group_name: str) -> None:
    """Sum ``tensor`` in place by way of the symmetric ``message``, on the current stream."""
    if chosen == "one_shot":
        torch.ops.symm_mem.one_shot_all_reduce_copy_out(message, tensor, "sum", group_name, out=tensor)
        return
    message.copy_(tensor)
    if chosen == "two_shot":
        torch.ops.symm_mem.two_shot_all_reduce_(message, "sum", group_name)
    else:
        torch.ops.symm_mem.multimem_all_reduce_(message, "sum", group_name)
    tensor.copy_(message)


def _seats(group: Any, device: int) -> list[Seat]:
    """The seats of all ranks, which speak to each other for it."""
    from torch._C._autograd import DeviceType
    from torch._C._distributed_c10d import _detect_dma_connectivity, _SymmetricMemory  # type: ignore[attr-defined]

    links = tuple(_detect_dma_connectivity(DeviceType.CUDA, "nvlink").matrix[device])
    own = Seat(socket.gethostname(), device, links, _SymmetricMemory.has_multicast_support(DeviceType.CUDA, device))
    seats: list[Any] = [None] * group.size()
    dist.all_gather_object(seats, own, group=group)
    return seats
