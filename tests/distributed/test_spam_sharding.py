"""Sharded parameters take bitwise the steps of whole ones."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from twins import MODES, OPTIONS, STEPS, Spec, Twins, full, like, mesh_of, same_bits, values

import ladderkern

BF16, F64 = torch.bfloat16, torch.float64


def by_rows(world_size: int) -> list[Spec]:
    """Shard(0) parameters, whose rows suit every mask unit, in the company of plain ones."""
    first = [Shard(0)]
    return [
        Spec((7,), first),
        Spec((16 * world_size, 5), first),
        Spec((48,), None),
        Spec((3,), first),  # an empty shard on 4 ranks
        Spec((16 * world_size, 32), first, BF16),
        Spec((1,), first),
        Spec((32, 48), None),
        Spec((2, 3, 5), first),
        Spec((16 * world_size, 2, 16), first),
        Spec((), None),
        Spec((16 * world_size, 16), first, F64),
    ]


def ragged_rows() -> list[Spec]:
    """Uneven and empty Shard(0) shards, which an element mask does not mind."""
    first = [Shard(0)]
    return [
        Spec((5, 48), first),
        Spec((2, 32), first),
        Spec((1, 16), first),
        Spec((16, 32), None),
        Spec((3, 4, 16), first),
        Spec((1, 5, 32), first),
        Spec((7, 2, 32), first, BF16),
        Spec((5, 17), first),
        Spec((2, 16), first, F64),
    ]


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("mode", MODES)
def test_row_shards_step_as_the_whole(world_size, mode):
    Twins.of(by_rows(world_size), mesh_of(world_size), **MODES[mode]).train()


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.startswith("row")])
def test_uneven_and_empty_shards_step_as_the_whole(world_size, mode):
    Twins.of(ragged_rows(), mesh_of(world_size), **MODES[mode]).train()


@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("mode", ["element-bf16-moments", "row-bf16-moments"])
def test_each_backend_steps_shards_as_the_whole(name, mode):
    specs = [
        Spec((64, 64), [Shard(0), Shard(1)]),
        Spec((3, 32), [Shard(0), Shard(0)]) if mode.startswith("element") else Spec((32, 5), [Shard(1), Shard(0)]),
        Spec((32, 3, 32), [Shard(0), Shard(2)]),
        Spec((5,), [Shard(0), Shard(0)]),
        Spec((16, 16), None),
    ]
    twins = Twins.of(specs, mesh_of(2, 2), **MODES[mode])
    with ladderkern.backend(name):
        try:
            twins.train()
        except ladderkern.BackendUnavailable as reason:
            pytest.skip(str(reason))


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("mode", MODES)
def test_column_shards_step_as_the_whole(world_size, mode):
    specs = [
        Spec((6, 32 * world_size), [Shard(1)]),  # boundaries at multiples of 16
        Spec((16, 16 * world_size), [Shard(1)], BF16),
        Spec((3, 5, 32), [Shard(1)]),
        Spec((2, 3, 16 * world_size), [Shard(2)]),
        Spec((5, 7), [Shard(1)]),
        Spec((4, 46), [Shard(1)]),  # dense, though 3 ranks hold 16 columns of it
        Spec((16,), [Replicate()]),
        Spec((32, 16), [Replicate()]),
        Spec((2, 16 * world_size), None),
    ]
    if mode.startswith("row"):
        specs += [
            Spec((32, 5), [Shard(1)]),
            Spec((32, 2), [Shard(1)]),
            Spec((16, 5, 3), [Shard(1)]),
            Spec((16, 2, 5), [Shard(2)]),
        ]
    Twins.of(specs, mesh_of(world_size), **MODES[mode]).train()


@pytest.mark.ranks(4)
@pytest.mark.parametrize("mode", MODES)
def test_shards_of_a_two_dimensional_mesh_step_as_the_whole(mode):
    specs = [
        Spec((32, 64), [Shard(0), Shard(1)]),
        Spec((64, 32), [Shard(1), Shard(0)], BF16),
        Spec((64, 16), [Shard(0), Shard(0)]),
        Spec((64, 16), [_StridedShard(0, split_factor=2), Shard(0)]),
        Spec((32, 3, 32), [Shard(0), Shard(2)]),
        Spec((32, 6, 16), [Shard(0), Shard(1)]),
        Spec((1, 6, 64), [Shard(1), Shard(2)]),
        Spec((32, 32), [Replicate(), Shard(0)]),
        Spec((32, 32), [Shard(1), Replicate()]),
        Spec((9,), [Shard(0), Shard(0)]),
        Spec((5, 7), [Shard(0), Shard(1)]),
    ]
    Twins.of(specs, mesh_of(2, 2), **MODES[mode]).train()


class Model(nn.Module):
    """Some rows fewer than ranks, one- to three-dimensional parameters, and one that gets no gradient."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16 * world_size, 32)
        self.conv = nn.Conv1d(32, 16 * world_size, 3, padding=1)
        self.norm = nn.LayerNorm(16 * world_size)
        self.head = nn.Linear(16 * world_size, 16 * world_size)
        self.scale = nn.Parameter(torch.ones(1))
        self.unused = nn.Parameter(torch.ones(16 * world_size, 16))
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(values(p.shape, i).clamp(-3, 3))

    def forward(self, tokens):
        x = self.conv(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x)) * self.scale


@pytest.mark.ranks(2, 3, 4)
@pytest.mark.parametrize("mode", MODES)
def test_fully_shard_trains_as_the_unsharded_optimizer_does(world_size, mode):
    model = Model(world_size)
    for module in (model.embedding, model.head):
        fully_shard(module, mesh=mesh_of(world_size))
    fully_shard(model, mesh=mesh_of(world_size))
    twins = Twins(model.parameters(), **MODES[mode])
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
        tokens = torch.randint(16 * world_size, (2, 6), generator=generator)
        model(tokens).square().mean().backward()
        twins.copy_gradients()
        twins.step()
        model.zero_grad()
    twins.check()
    assert model.unused not in twins.optimizers[0].state


@pytest.mark.ranks(4)
@pytest.mark.parametrize("mode", MODES)
def test_fully_shard_over_tensor_parallel_trains_as_the_unsharded_optimizer_does(mode):
    mesh = mesh_of(2, 2)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(values(p.shape, i).clamp(-3, 3) / 8)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    kinds = {type(placement) for p in model.parameters() for placement in p.placements}
    assert kinds == {_StridedShard, Shard, Replicate}
    twins = Twins(model.parameters(), **MODES[mode])
    for step in range(STEPS):
        model(values((3, 64), 10 * step + mesh["dp"].get_local_rank())).square().mean().backward()
        twins.copy_gradients()
        twins.step()
        model.zero_grad()
    twins.check()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("mode", MODES)
def test_masks_are_the_same_on_all_ranks_whatever_their_rng(world_size, mode):
    options = {**OPTIONS, **MODES[mode], "weight_decay": 0.0, "warmup_steps": 0}
    shape = (16 * world_size, 32)
    p = nn.Parameter(distribute_tensor(torch.zeros(shape), mesh_of(world_size), [Shard(0)], src_data_rank=None))
    first = nn.Parameter(torch.zeros(3))
    optimizer = ladderkern.SPAM([first, p], **options)
    for cycle in range(3):
        before = full(p.detach()).clone()
        p.grad = like(p, torch.ones(shape))
        torch.rand(dist.get_rank() + 1)
        optimizer.step()  # the first step of a cycle
        expected = ladderkern.spam.mask(
            shape, options.get("density", 1.0), seed=11, index=1, cycle=cycle, mask_unit=options.get("mask_unit", "element")
        )
        assert torch.equal(full(p.detach()) != before, expected), f"cycle {cycle}"
        for _ in range(3 if cycle == 0 else 4):
            optimizer.step()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("placement", [Replicate(), Partial("sum"), Shard(1)], ids=str)
def test_gradients_of_another_placement_are_redistributed(placement):
    twins = Twins.of([Spec((32, 32), [Shard(0)])], mesh_of(2), density=0.25)
    (p,) = twins.sharded
    for step in range(6):
        twins.set_gradients(step)
        whole = full(p.grad)
        if placement.is_partial():
            half = whole if dist.get_rank() == 1 else torch.zeros_like(whole)
            p.grad = DTensor.from_local(half, mesh_of(2), [placement], run_check=False)
        else:
            p.grad = distribute_tensor(whole, mesh_of(2), [placement], src_data_rank=None)
        twins.step()
    twins.check()


@pytest.mark.ranks(2)
def test_the_rng_of_a_rank_is_left_alone():
    twins = Twins.of([Spec((32, 32), [Shard(0)])], mesh_of(2), density=0.25, state_dtype=BF16)
    before = torch.get_rng_state()
    twins.set_gradients(0)
    twins.optimizers[0].step()
    assert same_bits(before, torch.get_rng_state())


@pytest.mark.ranks(3)
@pytest.mark.parametrize("mode", MODES)
def test_a_rank_outside_the_mesh_of_a_parameter_steps_nothing(mode):
    mesh = DeviceMesh("cpu", [0, 1])
    p = nn.Parameter(distribute_tensor(values((32, 32), 0), mesh, [Shard(0)], src_data_rank=None))
    q = nn.Parameter(values((32, 32), 0))
    mine, other = (ladderkern.SPAM([x], **{**OPTIONS, **MODES[mode]}) for x in (p, q))
    for step in range(STEPS):
        q.grad = values((32, 32), step)
        p.grad = like(p, q.grad)
        mine.step()
        other.step()
    if mesh.get_coordinate() is None:
        assert p.to_local().numel() == 0
    else:
        assert same_bits(p, q)
        assert all(same_bits(mine.state[p][key], held) for key, held in other.state[q].items())
