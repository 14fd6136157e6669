"""A sharded and an unsharded model that must stay bitwise equal, under settings in which everything happens within 12 steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

import ladderkern

STEPS = 12  # the resets are steps 5 and 10
OPTIONS: dict[str, Any] = {
    "lr": 0.05,
    "weight_decay": 0.1,
    "threshold": 2.0,  # clips at k >= 2
    "reset_interval": 5,
    "warmup_steps": 3,
    "unclipped_steps": 2,
    "seed": 11,
}
DRAWS: dict[str, dict[str, Any]] = {
    "dense": {},
    "element": {"density": 0.25},
    "row": {"density": 0.25, "mask_unit": "row"},
}
MODES: dict[str, dict[str, Any]] = {
    **DRAWS,
    **{f"{name}-bf16-moments": {**options, "state_dtype": torch.bfloat16} for name, options in DRAWS.items()},
}


class Spec(NamedTuple):
    """A parameter of the sharded model: a DTensor, or plain where placements is None."""

    shape: tuple[int, ...]
    placements: Sequence[Any] | None
    dtype: torch.dtype = torch.float32


@cache
def mesh_of(*sizes: int) -> DeviceMesh:
    return init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "tp")[: len(sizes)])


def values(shape: Iterable[int], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same on every rank, with some zeros and spikes of a thousand."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    u = torch.rand(x.shape, generator=generator)
    return torch.where(u < 0.1, 0.0, torch.where(u > 0.95, 1000 * x, x)).to(dtype)


def full(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = (full(x.detach()).reshape(-1).contiguous() for x in (a, b))
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


class Twins:
    """Two lists of parameters, ``sharded`` and ``plain``, each with its own optimizer of the same options."""

    def __init__(self, sharded: Iterable[Tensor], **options: Any) -> None:
        self.sharded = list(sharded)
        self.plain: list[Tensor] = [nn.Parameter(full(p.detach()).clone()) for p in self.sharded]
        settings = {**OPTIONS, **options}
        self.optimizers = [ladderkern.SPAM(ps, **settings) for ps in (self.sharded, self.plain)]

    @staticmethod
    def of(specs: Iterable[Spec], mesh: DeviceMesh, **options: Any) -> Twins:
        sharded = []
        for i, spec in enumerate(specs):
            x = values(spec.shape, 1000 + i, spec.dtype)
            if spec.placements is not None:
                x = distribute_tensor(x, mesh, spec.placements, src_data_rank=None)
            sharded.append(nn.Parameter(x))
        return Twins(sharded, **options)

    def set_gradients(self, seed: int) -> None:
        for i, (p, q) in enumerate(zip(self.sharded, self.plain, strict=True)):
            grad = values(q.shape, 100 * seed + i, q.dtype)
            q.grad = grad.clone()
            p.grad = like(p, grad)

    def copy_gradients(self) -> None:
        """Give the plain model the gradients that the sharded model has."""
        for p, q in zip(self.sharded, self.plain, strict=True):
            q.grad = None if p.grad is None else full(p.grad).clone()

    def step(self) -> None:
        torch.rand(1 + torch.initial_seed() % 5)  # each rank's RNG goes its own way
        for optimizer in self.optimizers:
            optimizer.step()

    def train(self, steps: int = STEPS) -> None:
        for step in range(steps):
            self.set_gradients(step)
            self.step()
            if step + 1 in (OPTIONS["reset_interval"], steps):
                self.check(f"after step {step + 1}")

    def check(self, when: str = "at the end") -> None:
        mine, other = self.optimizers
        for i, (p, q) in enumerate(zip(self.sharded, self.plain, strict=True)):
            what = f"{when}: params[{i}] of shape {tuple(q.shape)}"
            assert same_bits(p, q), what
            for key, expected in other.state[q].items():
                held = mine.state[p][key]
                assert tuple(held.shape) == tuple(expected.shape), f"{what}, {key}"
                assert same_bits(held, expected), f"{what}, {key}"
                if isinstance(p, DTensor) and key != "step":
                    assert isinstance(held, DTensor), f"{what}, {key}"
                    assert held.placements == p.placements, f"{what}, {key}"


def like(p: Tensor, x: Tensor) -> Tensor:
    """The whole tensor ``x`` sharded as ``p`` is."""
    if not isinstance(p, DTensor):
        return x.clone()
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None)
