"""torch.distributed.checkpoint: saved on some ranks, loaded on others, and trained on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor
from twins import MODES, OPTIONS, STEPS, full, like, mesh_of, same_bits, values

import ladderkern

# Resets are steps 5 and 10: right before, at and right after the first one, in its warm-up.
SAVED_AFTER = (4, 5, 6)
MODES = {name: MODES[name] for name in ("dense", "element", "row", "element-bf16-moments")}


class Model(nn.Module):
    """Rows that 1 to 4 ranks cut between strata, and small parameters that some ranks hold nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(values((192, 16), 0))
        self.ragged = nn.Parameter(values((192, 3), 1))
        self.cube = nn.Parameter(values((192, 2, 16), 2, torch.bfloat16))
        self.bias = nn.Parameter(values((7,), 3))
        self.scale = nn.Parameter(values((1,), 4))


def build(mode: str, sharded: bool = True) -> tuple[Model, ladderkern.SPAM]:
    model = Model()
    if sharded:
        fully_shard(model, mesh=mesh_of(dist.get_world_size()))
    ps = list(model.parameters())
    groups = [{"params": ps[:2]}, {"params": ps[2:], "lr": 0.02, "seed": 3}]
    return model, ladderkern.SPAM(groups, **{**OPTIONS, **MODES[mode]})


def train(model: Model, optimizer: ladderkern.SPAM, first: int, last: int) -> None:
    for step in range(first, last):
        for i, p in enumerate(model.parameters()):
            p.grad = like(p, values(p.shape, 100 * step + i, p.dtype))
        torch.rand(1 + torch.initial_seed() % 5)  # each rank's RNG goes its own way
        optimizer.step()
        optimizer.zero_grad()


def check_end(model: Model, optimizer: ladderkern.SPAM, mode: str) -> None:
    """Equal to an uninterrupted run of the unsharded model."""
    whole, reference = build(mode, sharded=False)
    train(whole, reference, 0, STEPS)
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert same_bits(p, q), name
        for key, expected in reference.state[q].items():
            held = optimizer.state[p][key]
            assert tuple(held.shape) == tuple(expected.shape), f"{name}, {key}"
            assert same_bits(held, expected), f"{name}, {key}"
            if key != "step" and isinstance(p, DTensor):
                assert isinstance(held, DTensor), f"{name}, {key}"
                assert held.placements == p.placements, f"{name}, {key}"


def save(folder: str, mode: str) -> None:
    model, optimizer = build(mode)
    done = 0
    for steps in SAVED_AFTER:
        train(model, optimizer, done, steps)
        done = steps
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.save(state, checkpoint_id=f"{folder}/{steps}")
    train(model, optimizer, done, STEPS)
    check_end(model, optimizer, mode)


def load_and_go_on(folder: str, mode: str) -> None:
    for steps in SAVED_AFTER:
        model, optimizer = build(mode)
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.load(state, checkpoint_id=f"{folder}/{steps}")
        set_model_state_dict(model, state["model"])
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
        assert optimizer.param_groups[1]["lr"] == 0.02
        train(model, optimizer, steps, STEPS)
        check_end(model, optimizer, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_2_ranks_goes_on_bitwise_on_4_3_and_1(on_ranks, tmp_path, mode):
    on_ranks(2, save, folder=str(tmp_path), mode=mode)
    for world_size in (4, 3, 1):
        on_ranks(world_size, load_and_go_on, folder=str(tmp_path), mode=mode)


def save_whole(file: str, mode: str) -> None:
    model, optimizer = build(mode)
    train(model, optimizer, 0, 6)
    model_state, optimizer_state = get_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() == 0:
        torch.save({"model": model_state, "optimizer": optimizer_state}, file)
    else:
        assert not optimizer_state
    dist.barrier()


def load_whole(file: str, mode: str, broadcast: bool) -> None:
    model, optimizer = build(mode)
    state = {"model": {}, "optimizer": {}}
    if dist.get_rank() == 0 or not broadcast:
        state = torch.load(file, weights_only=True)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    train(model, optimizer, 6, STEPS)
    check_end(model, optimizer, mode)


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_full_state_dict_of_2_ranks_goes_on_bitwise_on_3(on_ranks, tmp_path, mode, broadcast):
    file = str(tmp_path / "state.pt")
    on_ranks(2, save_whole, file=file, mode=mode)
    on_ranks(3, load_whole, file=file, mode=mode, broadcast=broadcast)


def load_into_one_process(file: str, mode: str) -> None:
    """By names, into an unsharded model: what a user does to look at a checkpoint."""
    model, optimizer = build(mode, sharded=False)
    state = torch.load(file, weights_only=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    train(model, optimizer, 6, STEPS)
    check_end(model, optimizer, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_full_state_dict_goes_on_bitwise_in_an_unsharded_model(on_ranks, tmp_path, mode):
    file = str(tmp_path / "state.pt")
    on_ranks(2, save_whole, file=file, mode=mode)
    load_into_one_process(file, mode)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("mode", MODES)
def test_plain_state_dicts_round_trip_with_sharded_moments(mode):
    model, optimizer = build(mode)
    train(model, optimizer, 0, 6)
    resumed_model, resumed = build(mode)
    resumed_model.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for p, q in zip(model.parameters(), resumed_model.parameters(), strict=True):
        for key, held in optimizer.state[p].items():
            assert same_bits(held, resumed.state[q][key]), key
            assert held is not resumed.state[q][key], key
    train(resumed_model, resumed, 6, STEPS)
    check_end(resumed_model, resumed, mode)


@pytest.mark.ranks(2)
def test_a_sharded_adamw_checkpoint_is_loaded_and_trained_on():
    model, _ = build("dense")
    whole, _ = build("dense", sharded=False)
    resumed = []
    for each in (model, whole):
        adamw = torch.optim.AdamW(each.parameters())
        train(each, adamw, 0, 3)
        resumed.append(ladderkern.SPAM(each.parameters(), **OPTIONS))
        resumed[-1].load_state_dict(adamw.state_dict())
        train(each, resumed[-1], 3, STEPS)
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert same_bits(p, q)
        assert all(same_bits(resumed[0].state[p][key], held) for key, held in resumed[1].state[q].items())


@pytest.mark.ranks(2)
def test_sharded_moments_of_another_density_are_refused_and_change_nothing():
    model, compact = build("element")
    adamw = torch.optim.AdamW([{"params": group["params"]} for group in compact.param_groups])
    train(model, adamw, 0, 1)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 0 must have shape \(192, 4\), got \(192, 16\)"):
        compact.load_state_dict(adamw.state_dict())
    assert not compact.state


@pytest.mark.ranks(2)
def test_flattened_optimizer_state_dicts_hold_only_what_the_flattening_takes():
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, optimizer = build("element")
    train(model, optimizer, 0, 6)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    assert full(state["state.rows.exp_avg"]).shape == (192, 4)
    resumed_model, resumed = build("element")
    set_model_state_dict(resumed_model, get_model_state_dict(model))
    set_optimizer_state_dict(resumed_model, resumed, state, options=options)
    train(resumed_model, resumed, 6, STEPS)
    check_end(resumed_model, resumed, "element")


@pytest.mark.ranks(2)
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_dense_fsdp1_optimizer_state_goes_on_bitwise(use_orig_params):
    def build_fsdp1():
        inner = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
        with torch.no_grad():
            for i, p in enumerate(inner.parameters()):
                p.copy_(values(p.shape, i))
        model = FullyShardedDataParallel(inner, device_id=torch.device("cpu"), use_orig_params=use_orig_params)
        FullyShardedDataParallel.set_state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
        return model, ladderkern.SPAM(model.parameters(), **OPTIONS)

    def go(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.zero_grad()
            model(values((2, 5), step)).square().sum().backward()
            optimizer.step()

    model, optimizer = build_fsdp1()
    go(model, optimizer, 0, 6)
    resumed_model, resumed = build_fsdp1()
    resumed_model.load_state_dict(model.state_dict())
    state = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    resumed.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(resumed_model, resumed, state))
    go(model, optimizer, 6, STEPS)
    go(resumed_model, resumed, 6, STEPS)
    for p, q in zip(model.parameters(), resumed_model.parameters(), strict=True):
        assert same_bits(p, q)
        assert all(same_bits(held, resumed.state[q][key]) for key, held in optimizer.state[p].items())


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.distcp"))


def save_once(folder: str, mode: str) -> None:
    model, optimizer = build(mode)
    train(model, optimizer, 0, 1)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)


def test_compact_moments_are_compact_on_disk(on_ranks, tmp_path):
    for mode in ("dense", "row"):
        on_ranks(2, save_once, folder=str(tmp_path / mode), mode=mode)
    saved = folder_size(tmp_path / "dense") - folder_size(tmp_path / "row")
    elements = 192 * (16 + 3 + 2 * 16)
    assert saved > 2 * 4 * elements // 2  # three quarters of two float32 moments, less what files carry besides
