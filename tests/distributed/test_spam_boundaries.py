"""Shards that cannot be stepped as the whole are refused at the first step, by every rank alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore
from twins import MODES, OPTIONS, STEPS, Spec, Twins, full, like, mesh_of, same_bits, values

import ladderkern


@contextmanager
def imagined(rank: int, world_size: int) -> Iterator[DeviceMesh]:
    """The mesh that this rank would see, without the other ranks: nothing in it communicates."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        _clear_sharding_prop_cache()  # it would hand out this rank's mesh where the next one's is equal
        dist.destroy_process_group()


def first_step(shape, placements, mesh, **options) -> tuple[str, bool]:
    """The ValueError of the first step, and whether a second parameter had moved."""
    p = nn.Parameter(distribute_tensor(values(shape, 0), mesh, placements, src_data_rank=None))
    other = nn.Parameter(torch.zeros(4))
    optimizer = ladderkern.SPAM([("other", other), ("layers.0.weight", p)], **options)
    other.grad, p.grad = torch.ones(4), like(p, torch.ones(shape))
    with pytest.raises(ValueError, match=r"density|sharded|cut") as error:
        optimizer.step()
    return str(error.value), bool(other.any())


def raised_alike(message: str) -> bool:
    messages: list = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return set(messages) == {message}


@pytest.mark.ranks(2, 3)
def test_a_column_shard_that_cuts_a_stratum_is_refused(world_size):
    columns = 48 if world_size == 2 else 64  # on 3 ranks the last holds 20 of them
    message, moved = first_step((4, columns), [Shard(1)], mesh_of(world_size), density=0.25)
    held = 24 if world_size == 2 else 22
    assert "layers.0.weight" in message
    assert f"{held} elements 0 to {held - 1} of dimension 1" in message
    assert "mask_unit='row'" in message
    assert "multiple of 16" in message
    assert raised_alike(message)
    assert not moved


@pytest.mark.ranks(2, 3, 4)
def test_a_row_shard_that_cuts_a_stratum_is_refused(world_size):
    rows = {2: 16, 3: 64, 4: 32}[world_size]
    message, moved = first_step((rows, 8), [Shard(0)], mesh_of(world_size), density=0.25, mask_unit="row")
    held = {2: 8, 3: 22, 4: 8}[world_size]
    assert "layers.0.weight" in message
    assert f"{held} rows 0 to {held - 1} of dimension 0" in message
    assert "mask_unit='element'" in message
    assert "multiple of 16" in message
    assert raised_alike(message)
    assert not moved


@pytest.mark.parametrize("rank", range(5))
def test_a_rank_whose_own_shard_is_empty_raises_with_the_others(rank):
    """16 rows as 4, 4, 4, 4 and none: a rank that went on would wait for the others in the next collective."""
    with imagined(rank, 5) as mesh:
        message, moved = first_step((16, 8), [Shard(0)], mesh, density=0.25, mask_unit="row")
        assert "4 rows 0 to 3" in message
        assert not moved


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.startswith("row")])
def test_seventeen_ranks_of_which_one_is_empty_step_as_the_whole(mode):
    """256 rows as sixteen strata and none."""
    whole = nn.Parameter(values((256, 3), 0))
    optimizer = ladderkern.SPAM([whole], **{**OPTIONS, **MODES[mode]})
    for step in range(STEPS):
        whole.grad = values((256, 3), step)
        optimizer.step()
    shards = []
    for rank in range(17):
        with imagined(rank, 17) as mesh:
            p = nn.Parameter(distribute_tensor(values((256, 3), 0), mesh, [Shard(0)], src_data_rank=None))
            optimizer = ladderkern.SPAM([p], **{**OPTIONS, **MODES[mode]})
            for step in range(STEPS):
                p.grad = like(p, values((256, 3), step))
                optimizer.step()
            shards.append(p.detach().to_local())
    assert same_bits(torch.cat(shards), whole)


@pytest.mark.ranks(4)
def test_a_box_cut_in_two_inner_dimensions_is_refused():
    message, moved = first_step((4, 6, 64), [Shard(1), Shard(2)], mesh_of(2, 2))
    assert "(4, 6, 64)" in message
    assert "[1, 2]" in message
    assert raised_alike(message)
    assert not moved


@pytest.mark.ranks(4)
def test_a_strided_shard_that_is_not_contiguous_is_refused():
    message, _ = first_step((8, 4), [Shard(0), _StridedShard(0, split_factor=2)], mesh_of(2, 2))
    assert "(8, 4)" in message
    assert "dimension 0" in message
    assert raised_alike(message)


@pytest.mark.ranks(2)
def test_partial_parameters_are_refused():
    p = nn.Parameter(DTensor.from_local(torch.zeros(4, 4), mesh_of(2), [Partial()], run_check=False))
    p.grad = DTensor.from_local(torch.ones(4, 4), mesh_of(2), [Partial()], run_check=False)
    with pytest.raises(ValueError, match="partial placements"):
        ladderkern.SPAM([p]).step()


@pytest.mark.ranks(2)
def test_a_local_tensor_that_its_placements_do_not_describe_is_refused():
    local = torch.zeros(3 if dist.get_rank() == 0 else 1, 4)
    p = nn.Parameter(
        DTensor.from_local(local, mesh_of(2), [Shard(0)], run_check=False, shape=torch.Size((4, 4)), stride=(4, 1))
    )
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"must be \(2, 4\), got"):
        ladderkern.SPAM([p]).step()


@pytest.mark.ranks(2)
def test_a_plain_gradient_of_a_sharded_parameter_is_refused():
    p = nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh_of(2), [Shard(0)], src_data_rank=None))
    moments = {key: torch.zeros_like(p.detach()) for key in ("exp_avg", "exp_avg_sq")}
    optimizer = ladderkern.SPAM([p])
    p.grad = torch.zeros_like(p)
    optimizer.state[p].update(step=torch.zeros(()), exp_avg=torch.zeros(4, 4), exp_avg_sq=moments["exp_avg_sq"])
    with pytest.raises(TypeError, match="moment of a DTensor parameter must be a DTensor, got Tensor"):
        optimizer.step()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("mask_unit", ["element", "row"])
def test_the_cure_that_the_message_names_works(mask_unit):
    """Where one mask unit is refused, the other one trains as the whole."""
    shape, placement = ((48, 32), Shard(0)) if mask_unit == "row" else ((32, 48), Shard(1))
    message, _ = first_step(shape, [placement], mesh_of(2), density=0.25, mask_unit=mask_unit)
    other = "element" if mask_unit == "row" else "row"
    assert f"mask_unit={other!r}" in message
    Twins.of([Spec(shape, [placement])], mesh_of(2), density=0.25, mask_unit=other).train(6)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("use_orig_params", [True, False])
@pytest.mark.parametrize("mask_unit", ["element", "row"])
def test_flat_fsdp1_parameters_with_density_below_1_are_refused(use_orig_params, mask_unit):
    model = FullyShardedDataParallel(nn.Linear(32, 32), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
    with pytest.raises(ValueError, match=r"density must be 1 .*FSDP1.*fully_shard"):
        ladderkern.SPAM(model.parameters(), density=0.25, mask_unit=mask_unit)


@pytest.mark.ranks(2)
def test_fully_shard_names_the_parameter_it_cuts():
    model = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 16))
    fully_shard(model, mesh=mesh_of(2))
    optimizer = ladderkern.SPAM(model.named_parameters(), density=0.5, mask_unit="row")
    model(torch.ones(1, 8)).sum().backward()
    before = full(model[0].weight.detach()).clone()
    with pytest.raises(ValueError, match=r"'1\.weight' holds the 8 rows 0 to 7"):
        optimizer.step()
    assert same_bits(before, model[0].weight)
