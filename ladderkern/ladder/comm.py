"""Which communicator serves a group: torch.distributed, or symmetric memory where NVLink joins the ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .capture import check_eager
from .handles import Communicator, Handle
from .symmetric import SYMMETRIC_BYTES, SymmetricMemoryCommunicator

_OFF = ("", "0", "n", "no", "f", "false", "off")


class ProcessGroupCommunicator(Communicator):
    """``torch.distributed.all_reduce(async_op=True)``: gloo on CPU, NCCL and its internal stream on CUDA.

    Args:
        group: an initialised ProcessGroup.

    Raises:
        ValueError: the environment asks for torch's IntraNodeComm, which would run NCCL groups' small all-reduces on the stream
            that computes and return when they are done: nothing would overlap.
    """

    def __init__(self, group: Any) -> None:
        if _is_nccl(group) and os.environ.get("ENABLE_INTRA_NODE_COMM", "0").lower() not in _OFF:
            raise ValueError("group must not use torch's IntraNodeComm, which overlaps nothing: unset ENABLE_INTRA_NODE_COMM")
        self.group = group

    def launch(self, tensor: Tensor, name: Any = "all-reduce") -> Handle:
        """Raises RuntimeError, naming the all-reduce, if it cannot start, as in compiled code."""
        check_eager(name)
        try:
            return Handle(tensor, name, dist.all_reduce(tensor, group=self.group, async_op=True))
        except RuntimeError as error:
            raise self._failure(name, error) from error

    def wait(self, handle: Handle) -> None:
        """Raises RuntimeError, naming the all-reduce, if a rank is gone or late by more than the group's timeout."""
        check_eager(handle.name)
        try:
            handle.take().wait()
        except RuntimeError as error:
            raise self._failure(handle.name, error) from error

    def _failure(self, name: Any, error: Exception) -> RuntimeError:
        rank, size = self.group.rank(), self.group.size()
        return RuntimeError(f"the {name} failed on rank {rank} of a group of {size}: {error}")


def communicator(group: Any) -> Communicator | None:
    """What communicates over a group: None for None and for a single rank; a Communicator stays what it is.

    Args:
        group: None, a Communicator, a ProcessGroup or a DeviceMesh of one dimension.

    Raises:
        ValueError: torch.distributed is not initialised, this rank is not in the group, or the mesh has more dimensions.
        TypeError: anything else.
    """
    if group is None or isinstance(group, Communicator):
        return group
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("group must be None where torch.distributed is not initialised: call init_process_group first")
    if isinstance(group, dist.device_mesh.DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group must be a mesh of one dimension, got one of {group.ndim}: {group}; name one of them")
        group = group.get_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must hold this rank")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be None, a ProcessGroup, a DeviceMesh or a Communicator, got {type(group).__name__}")
    if group.size() == 1:
        return None
    process_group = ProcessGroupCommunicator(group)
    if _is_nccl(group) and torch.version.cuda is not None and group.size() in SYMMETRIC_BYTES:
        return SymmetricMemoryCommunicator(group, process_group)
    return process_group


def _is_nccl(group: Any) -> bool:
    return "nccl" in dist.get_backend_config(group)
