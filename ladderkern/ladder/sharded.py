"""The linear layers and norms of a tensor-parallel model: parameters are DTensors, arithmetic is on this rank's part."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import column_linear
from .norm import rms_norm
from .sums import sum_gradients

if dist.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
else:
    DTensor = ()  # type: ignore[assignment,misc]  # of which nothing is an instance


class Placer:
    """Turns the parameters of one model into DTensors over ``mesh``; a parameter that is used twice stays one.

    The values are those of the group's first rank, unless they are on the meta device.
    """

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.placed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def shard(self, parameter: Any, dim: int) -> Any:
        return self._place(parameter, Shard(dim))

    def replicate(self, parameter: Any) -> Any:
        return self._place(parameter, Replicate())

    def _place(self, parameter: Any, placement: Any) -> Any:
        if parameter is None:
            return None
        if id(parameter) not in self.placed:
            source = None if parameter.is_meta else 0
            whole = distribute_tensor(parameter.detach(), self.mesh, [placement], src_data_rank=source)
            # The old parameter is kept so that its id is not given to another one.
            self.placed[id(parameter)] = parameter, nn.Parameter(whole, requires_grad=parameter.requires_grad)
        return self.placed[id(parameter)][1]


def local(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter: itself, unless it is a DTensor."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def replicated(weight: Tensor) -> Tensor:
    """The values of a norm's weight, which every rank must hold whole when a stack reads it.

    Raises:
        ValueError: it is sharded, as by ``fully_shard`` of its decoder layer, which a stack does not call.
    """
    if isinstance(weight, DTensor) and not all(placement.is_replicate() for placement in weight.placements):
        raise ValueError(
            f"norm weights must be whole in the forward, got {weight.placements}: call fully_shard on each layer's self_attn "
            "and mlp, then on the model, not on the layers"
        )
    return local(weight)


class ColumnParallelLinear(nn.Module):
    """This rank's output features of a linear layer."""

    def __init__(self, linear: nn.Linear, place: Placer) -> None:
        super().__init__()
        self.weight = place.shard(linear.weight, 0)
        self.bias = place.shard(linear.bias, 0)

    def forward(self, x: Tensor) -> Tensor:
        return column_linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class RowParallelLinear(nn.Module):
    """This rank's part of the sum over input features; the first rank's part holds the bias."""

    def __init__(self, linear: nn.Linear, place: Placer) -> None:
        super().__init__()
        self.mesh = place.mesh
        self.weight = place.shard(linear.weight, 1)
        self.bias = place.replicate(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None
        if self.bias is not None:
            bias = local(self.bias)
            if self.mesh.get_local_rank() != 0:
                bias = bias - bias.detach()  # zero, but with the gradient that the first rank's bias gets
        return F.linear(x, local(self.weight), bias)


class SharedHeadLinear(nn.Module):
    """One head of a key or value projection that has fewer heads than the group has ranks.

    Every rank holds all heads, uses the one of its queries, and gets the sum of the gradients of all ranks.
    """

    def __init__(self, linear: nn.Linear, place: Placer, num_heads: int) -> None:
        super().__init__()
        self.mesh = place.mesh
        self.num_heads = num_heads
        self.weight = place.replicate(linear.weight)
        self.bias = place.replicate(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return column_linear(x, self._head(self.weight), None if self.bias is None else self._head(self.bias))

    def _head(self, parameter: Tensor) -> Tensor:
        whole = sum_gradients(local(parameter), self.mesh.get_group(), "a shared key or value head")
        size = whole.shape[0] // self.num_heads
        head = self.mesh.get_local_rank() * self.num_heads // self.mesh.size()
        return whole.narrow(0, head * size, size)


class ReplicatedRMSNorm(nn.Module):
    """The norm of a stream that every rank holds whole."""

    def __init__(self, norm: Any, place: Placer) -> None:
        super().__init__()
        self.variance_epsilon = norm.variance_epsilon
        self.weight = place.replicate(norm.weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, replicated(self.weight), self.variance_epsilon)
