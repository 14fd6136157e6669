"""Mixed precision: gradients are unscaled inside the step, and a step with an infinity changes nothing at all."""

import math

import pytest
import torch

import ladderkern
from ladderkern.testing import assert_within_budget, floats

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHORT = {"reset_interval": 4, "warmup_steps": 2, "unclipped_steps": 1, "lr": 0.01, "weight_decay": 0.1}


def scaled_step(optimizer, grad_scale, found_inf):
    """What GradScaler.step does with an optimizer that supports scaling."""
    optimizer.grad_scale, optimizer.found_inf = grad_scale, found_inf
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


def test_the_golden_step_of_torchs_contract(backend):
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = ladderkern.SPAM([p])
    p.grad = torch.tensor([2.0])
    scaled_step(optimizer, torch.tensor(2.0), torch.tensor(0.0))
    assert p.grad.item() == 1.0  # the unscaled gradient is written back, as torch's fused optimizers do
    m = torch.tensor([0.1], dtype=torch.float64)
    assert_within_budget(optimizer.state[p]["exp_avg"], m.float(), m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [1.0, 0.25])
def test_a_power_of_two_scale_gives_the_unscaled_run_bitwise(backend, train, snapshot, assert_bitwise_equal, dtype, density):
    params = [torch.nn.Parameter(floats((16, 32), dtype, seed=1)) for _ in range(2)]
    scaled, plain = (ladderkern.SPAM([p], density=density, **SHORT) for p in params)
    for n in range(10):
        g = floats((16, 32), dtype, seed=10 + n)
        params[0].grad = g * 64
        scaled_step(scaled, torch.tensor(64.0), torch.tensor(0.0))
        train(plain, [[g]])
        assert_bitwise_equal([params[0].grad], [g])
    assert_bitwise_equal(snapshot(scaled), snapshot(plain))


def test_a_scale_that_is_no_power_of_two_is_divided_out(backend, simulation):
    p = torch.nn.Parameter(floats((40, 40), seed=1))
    g = floats((40, 40), seed=2)
    eager, oracle = (simulation(p, dtype) for dtype in (torch.float32, torch.float64))
    for s in (eager, oracle):
        s.step(g.to(s.p.dtype) / 3.0)
    optimizer = ladderkern.SPAM([p])
    p.grad = g.clone()
    scaled_step(optimizer, torch.tensor(3.0), torch.tensor(0.0))
    assert_within_budget(p.detach(), eager.p, oracle.p)
    assert_within_budget(p.grad, g / 3.0, g.double() / 3.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"density": 0.25}, {"state_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("before", [0, 2, 3, 4], ids=["first", "clipped", "reset", "after the reset"])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_found_inf_leaves_everything_as_it_was(backend, train, snapshot, assert_bitwise_equal, dtype, options, before, scale):
    p = torch.nn.Parameter(floats((16, 32), dtype, seed=1))
    optimizer = ladderkern.SPAM([p], **options, **SHORT)
    train(optimizer, [[floats((16, 32), dtype, seed=10 + n)] for n in range(before)])
    twin = torch.nn.Parameter(p.detach().clone())
    other = ladderkern.SPAM([twin], **options, **SHORT)
    other.load_state_dict(optimizer.state_dict())
    g = floats((16, 32), dtype, seed=2)
    g[0, 0], g[3, 3] = math.inf, math.nan
    p.grad = g.clone()
    old = snapshot(optimizer)
    scaled_step(optimizer, None if scale is None else torch.tensor(scale), torch.tensor(1.0))
    assert_bitwise_equal([p.grad], [g])
    new = snapshot(optimizer)
    assert_bitwise_equal(new[: len(old)], old)
    assert all((t == 0).all() for t in new[len(old) :])  # before the first step the state begins, and stays, at 0
    # Phase and mask are those of a run in which the bad gradient never came.
    rest = [[floats((16, 32), dtype, seed=20 + n)] for n in range(6)]
    train(optimizer, rest)
    train(other, rest)
    assert_bitwise_equal(snapshot(optimizer), snapshot(other))


def test_grad_scale_alone_and_found_inf_alone_are_honoured(backend):
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ladderkern.SPAM([p])
    p.grad = torch.full((3,), 2.0)
    scaled_step(optimizer, torch.tensor(2.0), None)
    assert torch.equal(p.grad, torch.ones(3))
    scaled_step(optimizer, None, torch.tensor(0.0))
    assert torch.equal(p.grad, torch.ones(3))
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("unscale_first", [False, True])
def test_grad_scaler_end_to_end(backend, unscale_first, snapshot, assert_bitwise_equal):
    params = [torch.nn.Parameter(floats((16, 32), seed=1)) for _ in range(2)]
    scaled, plain = (ladderkern.SPAM([p], density=0.5, **SHORT) for p in params)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    scales = []
    for n in range(12):
        x = floats((16, 32), seed=10 + n)
        if n == 6:
            x[1, 1] = math.inf
        before = snapshot(scaled)
        scaled.zero_grad()
        scaler.scale((params[0] * x).sum()).backward()
        if unscale_first:
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        scales.append(scaler.get_scale())
        if n == 6:
            assert_bitwise_equal(snapshot(scaled), before)
            continue
        params[1].grad = x
        plain.step()
        assert_bitwise_equal([params[0].grad], [x])
    assert scales[5:7] == [4096.0, 2048.0]  # twice grown, then halved by the infinity
    assert_bitwise_equal(snapshot(scaled), snapshot(plain))


def test_float16_gradients_that_overflow_are_skipped_until_the_scale_fits(backend):
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.float16))
    optimizer = ladderkern.SPAM([p])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)  # above float16's largest number
    stepped = []
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(p.float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        stepped.append(optimizer.state[p]["step"].item())
    assert stepped == [0, 0, 1, 2]
    assert (p < 1).all()


@pytest.mark.parametrize("maximize", [False, True])
def test_unscaling_keeps_the_sign_under_maximize(backend, maximize):
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ladderkern.SPAM([p], maximize=maximize)
    p.grad = torch.full((3,), 4.0)
    scaled_step(optimizer, torch.tensor(4.0), torch.tensor(0.0))
    assert torch.equal(p.grad, torch.ones(3))
    assert ((p > 0) == maximize).all()


def test_scale_and_found_inf_may_have_one_element(backend):
    params = [torch.nn.Parameter(torch.tensor(0.0)), torch.nn.Parameter(torch.zeros(3))]
    optimizer = ladderkern.SPAM(params)
    for found_inf, count, gradient in ((1.0, 0, 2.0), (0.0, 1, 1.0)):
        for p in params:
            p.grad = torch.full_like(p, 2.0)
        scaled_step(optimizer, torch.tensor([2.0]), torch.tensor([found_inf]))
        assert [optimizer.state[p]["step"].item() for p in params] == [count, count]
        assert params[0] == params[1][0]
        assert params[0].grad == gradient
