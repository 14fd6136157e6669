"""SPAM in the company of data parallelism, gradient clipping, loss scaling, hooks and schedulers."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from twins import DRAWS, MODES, OPTIONS, STEPS, Spec, Twins, full, mesh_of, same_bits, values

import ladderkern

SPECS = [Spec((32, 32), [Shard(0)]), Spec((5,), [Shard(0)]), Spec((32, 48), [Shard(0)]), Spec((3, 2, 16), [Shard(0)])]


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(values(p.shape, i).clamp(-3, 3) / 8)
    return model


def inputs(step: int) -> torch.Tensor:
    """Other data on every rank."""
    return values((3, 16), 10 * step + dist.get_rank()).clamp(-3, 3)


def equal_on_all_ranks(x: torch.Tensor) -> bool:
    copies = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, x.contiguous())
    return all(same_bits(copy, x) for copy in copies)


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("mode", MODES)
def test_ddp_keeps_parameters_and_moments_equal_whatever_the_rng_of_each_rank(mode):
    model = DistributedDataParallel(small_model())
    optimizer = ladderkern.SPAM(model.parameters(), **{**OPTIONS, **MODES[mode]})
    for step in range(STEPS):
        torch.rand(dist.get_rank() + 1)
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        optimizer.step()
    for p in model.parameters():
        assert equal_on_all_ranks(p.detach())
        assert all(equal_on_all_ranks(tensor) for tensor in optimizer.state[p].values())


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_dense_fsdp1_trains_as_the_unsharded_optimizer_does(use_orig_params):
    model = FullyShardedDataParallel(small_model(), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
    optimizer = ladderkern.SPAM(model.parameters(), **OPTIONS)
    whole = small_model()
    reference = ladderkern.SPAM(whole.parameters(), **OPTIONS)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        with FullyShardedDataParallel.summon_full_params(model, with_grads=use_orig_params):
            if use_orig_params:
                for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                    q.grad = p.grad.clone()
        if not use_orig_params:
            flat = torch.cat([torch.empty(0), *gathered(next(model.parameters()).grad)])
            for q in whole.parameters():
                q.grad, flat = flat[: q.numel()].view_as(q).clone(), flat[q.numel() :]
        optimizer.step()
        reference.step()
    with FullyShardedDataParallel.summon_full_params(model):
        trained = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        expected = torch.cat([p.detach().reshape(-1) for p in whole.parameters()])
        assert same_bits(trained[: expected.numel()], expected)


def gathered(x: torch.Tensor) -> list[torch.Tensor]:
    copies = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, x)
    return copies


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("mode", DRAWS)
def test_clipping_the_gradient_norm_before_the_step(world_size, mode):
    specs = [Spec((16 * world_size, 32), [Shard(0)]), Spec((5,), [Shard(0)])]
    twins = Twins.of(specs, mesh_of(world_size), **DRAWS[mode])
    for step in range(STEPS):
        twins.set_gradients(step)
        before = full(twins.sharded[0].grad).clone()
        norm = nn.utils.clip_grad_norm_(twins.sharded, 0.5)
        assert full(norm) > 0.5
        assert not same_bits(before, twins.sharded[0].grad)
        twins.copy_gradients()
        twins.step()
    twins.check()


@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("mode", DRAWS)
def test_an_infinite_gradient_on_one_rank_skips_the_step_on_all(world_size, unscale_first, mode):
    specs = [Spec((16 * world_size, 32), [Shard(0)]), Spec((16 * world_size,), [Shard(0)])]
    twins = Twins.of(specs, mesh_of(world_size), **DRAWS[mode])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step in range(STEPS):
        scale = scaler.get_scale() if step else 1024.0
        twins.set_gradients(step)
        for p in twins.sharded:
            p.grad.to_local().mul_(scale)  # a power of two: unscaling is exact
        overflow = step in (2, 4)  # the next step that counts is the reset
        scaler.scale(torch.ones(()))
        if overflow and dist.get_rank() == world_size - 1:
            twins.sharded[1].grad.to_local()[0] = torch.inf
        before = [full(p.detach()).clone() for p in twins.sharded]
        if unscale_first:
            scaler.unscale_(twins.optimizers[0])
        scaler.step(twins.optimizers[0])
        scaler.update()
        if overflow:
            assert all(same_bits(p, old) for p, old in zip(twins.sharded, before, strict=True))
            assert scaler.get_scale() == scale / 2
        else:
            twins.optimizers[1].step()
    assert twins.optimizers[0].state[twins.sharded[0]]["step"].item() == STEPS - 2
    twins.check()


@pytest.mark.ranks(2)
def test_step_hooks_run_around_a_step_of_shards():
    twins = Twins.of(SPECS[:2], mesh_of(2))
    seen = []
    twins.optimizers[0].register_step_pre_hook(lambda *_: seen.append("before"))
    twins.optimizers[0].register_step_post_hook(lambda *_: seen.append("after"))
    twins.train(6)
    assert seen == ["before", "after"] * 6


@pytest.mark.ranks(2)
def test_moments_that_a_hook_put_there_are_kept():
    """As torchtitan does for bfloat16 states: DTensors in the state before the first step."""

    def fill(optimizer, *_):
        for group in optimizer.param_groups:
            for p in group["params"]:
                for key in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[p].setdefault(key, torch.zeros_like(p.detach(), dtype=torch.bfloat16))

    twins = Twins.of(SPECS, mesh_of(2))
    for optimizer in twins.optimizers:
        optimizer.register_step_pre_hook(fill)
    twins.train()
    assert all(s["exp_avg"].dtype == torch.bfloat16 for s in twins.optimizers[0].state.values())


@pytest.mark.ranks(2)
@pytest.mark.parametrize("mode", DRAWS)
def test_a_tensor_learning_rate_under_a_scheduler(mode):
    twins = Twins.of([Spec((32, 32), [Shard(0)]), Spec((5,), [Shard(0)])], mesh_of(2), **DRAWS[mode], lr=torch.tensor(0.05))
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in twins.optimizers]
    rates = twins.optimizers[0].param_groups[0]["lr"]
    for step in range(STEPS):
        twins.set_gradients(step)
        twins.step()
        for scheduler in schedulers:
            scheduler.step()
    assert twins.optimizers[0].param_groups[0]["lr"] is rates
    twins.check()


@pytest.mark.ranks(2)
def test_a_closure_trains_a_fully_sharded_model():
    model = small_model()
    fully_shard(model, mesh=mesh_of(2))
    twins = Twins(model.parameters())

    def closure():
        model.zero_grad()
        loss = model(inputs(0)).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(twins.optimizers[0].step(closure))
        twins.copy_gradients()
        twins.optimizers[1].step()
    assert all(loss.requires_grad for loss in losses)
    twins.check()


@pytest.mark.ranks(2)
def test_parameters_without_a_gradient_keep_their_own_phase():
    twins = Twins.of(SPECS, mesh_of(2), density=0.25)
    for step in range(STEPS):
        twins.set_gradients(step)
        if step % 3 == 0:
            twins.sharded[2].grad = twins.plain[2].grad = None
        twins.step()
    assert twins.optimizers[0].state[twins.sharded[2]]["step"].item() == STEPS - 4
    twins.check()
