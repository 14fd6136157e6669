"""The arithmetic of the published code, and numbers measured on it (facts/spam.md sections 1 and 7)."""

import math

import pytest
import torch

import ladderkern
from ladderkern.testing import assert_within_budget, floats

# T, W, unclipped steps, steps taken: more than two cycles each; the second truncates the ramp, the third has none.
CYCLES = [(37, 11, 20, 120), (10, 25, 3, 33), (12, 0, 0, 40)]


@pytest.mark.filterwarnings("ignore:warmup_steps")
@pytest.mark.parametrize(("interval", "warmup", "unclipped", "steps"), CYCLES)
def test_a_run_equals_the_published_arithmetic(backend, simulation, spiky_gradients, interval, warmup, unclipped, steps):
    options = {"reset_interval": interval, "warmup_steps": warmup, "unclipped_steps": unclipped, "zero_variance": "freeze"}
    p = torch.nn.Parameter(floats((16, 33), seed=99))
    eager, oracle = (simulation(p, dtype, **options) for dtype in (torch.float32, torch.float64))
    optimizer = ladderkern.SPAM([p], **options)
    for g in spiky_gradients(steps, p.shape):
        p.grad = g
        optimizer.step()
        assert_state_within_budget(optimizer, eager.step(g), oracle.step(g))


@pytest.mark.filterwarnings("ignore:warmup_steps")
@pytest.mark.parametrize(("interval", "warmup", "unclipped", "steps"), CYCLES)
def test_each_float64_step_equals_the_published_arithmetic(
    backend, simulation, spiky_gradients, interval, warmup, unclipped, steps
):
    options = {"reset_interval": interval, "warmup_steps": warmup, "unclipped_steps": unclipped, "zero_variance": "freeze"}
    p = torch.nn.Parameter(floats((16, 33), torch.float64, seed=99))
    oracle = simulation(p, torch.float64, **options)
    optimizer = ladderkern.SPAM([p], **options)
    for g in spiky_gradients(steps, p.shape, torch.float64):
        p.grad = g
        optimizer.step()
        oracle.step(g)
        assert_state_within_budget(optimizer, oracle, oracle)
        # No oracle is finer than float64: each step starts from the same numbers, so that roundings do not add up.
        oracle.p, oracle.m, oracle.v = (
            t.detach().clone() for t in (p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])
        )


def assert_state_within_budget(optimizer, eager, oracle):
    (p,) = optimizer.param_groups[0]["params"]
    assert_within_budget(p.detach(), eager.p, oracle.p, f"step {oracle.n}: p")
    assert_within_budget(optimizer.state[p]["exp_avg"], eager.m, oracle.m, f"step {oracle.n}: exp_avg")
    assert_within_budget(optimizer.state[p]["exp_avg_sq"], eager.v, oracle.v, f"step {oracle.n}: exp_avg_sq")


def test_default_schedule_over_two_resets_equals_the_published_arithmetic(backend, simulation, spiky_gradients):
    p = torch.nn.Parameter(floats((64,), seed=99))
    eager, oracle = (simulation(p, d, zero_variance="freeze", weight_decay=0.0) for d in (torch.float32, torch.float64))
    optimizer = ladderkern.SPAM([p], zero_variance="freeze")
    for g in spiky_gradients(1010, p.shape):
        p.grad = g
        optimizer.step()
        eager.step(g)
        oracle.step(g)
    assert_within_budget(p.detach(), eager.p, oracle.p)


def test_warmup_scale_has_the_published_values():
    steps = torch.tensor([500, 501, 502, 520, 575, 600, 649])
    golden = ["0.010000", "0.010107", "0.010428", "0.052238", "0.499851", "0.746530", "0.999572"]
    assert [f"{s:.6f}" for s in ladderkern.spam.warmup_scale(steps).tolist()] == golden


def test_warmup_scale_is_one_outside_its_windows():
    steps = torch.arange(1, 1001)
    scale = ladderkern.spam.warmup_scale(steps)
    assert (scale[(steps < 500) | ((steps >= 650) & (steps < 1000))] == 1).all()
    assert scale[499] == 0.01
    assert scale[999] == 0.01
    assert ((scale[500:649] > 0.01) & (scale[500:649] < 1)).all()


@pytest.mark.parametrize(("interval", "warmup"), [(0, 150), (500, 0)])
def test_warmup_scale_is_one_without_resets_or_ramp(interval, warmup):
    scale = ladderkern.spam.warmup_scale(torch.arange(1, 1200), reset_interval=interval, warmup_steps=warmup)
    assert (scale == 1).all()


@pytest.mark.parametrize("name", ["reset_interval", "warmup_steps"])
def test_warmup_scale_refuses_negative_lengths(name):
    with pytest.raises(ValueError, match=name):
        ladderkern.spam.warmup_scale(torch.arange(1, 4), **{name: -1})


def step_on(values, **options):
    """A float64 scalar after one step a value: (p, state)."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ladderkern.SPAM([p], **options)
    for value in values:
        p.grad = torch.full_like(p, value)
        optimizer.step()
    return p.item(), optimizer.state[p]


def test_infinite_gradient_is_cut_to_the_published_value(backend):
    p = torch.nn.Parameter(torch.zeros(1))  # float32, as measured
    optimizer = ladderkern.SPAM([p], betas=(0.0, 0.999))  # exp_avg is the gradient after the cut
    for value in [1.0] * 29 + [math.inf]:
        p.grad = torch.full_like(p, value)
        optimizer.step()
    assert f"{optimizer.state[p]['exp_avg'].item():.6f}" == "11.957767"


def test_spike_of_ten_thousand_leaves_the_clipped_variance(backend):
    _, state = step_on([1.0] * 39 + [1e4])
    assert f"{state['exp_avg_sq'].item():.5f}" == "0.22957"


def test_first_step_divides_by_the_uncorrected_variance(backend):
    p, _ = step_on([2.0], lr=0.1)
    step_size = 0.1 * math.sqrt(1 - 0.999) / (1 - 0.9)
    assert f"{-p / step_size:.8f}" == "3.16222766"  # 0.2 / (sqrt(0.004) + 1e-6) in float64; float32 gives ...763


def test_cut_relative_to_the_running_rms_follows_the_published_table(backend):
    table = {20: "10.0", 50: "15.6", 100: "21.8", 200: "30.1", 300: "36.0", 499: "44.3"}
    p = torch.nn.Parameter(torch.zeros(len(table), dtype=torch.float64))
    optimizer = ladderkern.SPAM([p], betas=(0.0, 0.999))  # exp_avg is the gradient after the cut
    optimizer.state[p] = {
        "step": torch.tensor(499.0),
        "exp_avg": torch.full_like(p, 7.0).detach(),
        "exp_avg_sq": torch.full_like(p, 7.0).detach(),
    }
    spikes = torch.tensor(list(table))
    cuts = torch.zeros_like(p)
    for k in range(500):  # gradients of 1, and in each element one spike k steps after the reset
        p.grad = torch.where(spikes == k, 1e9, 1.0).to(p.dtype)
        optimizer.step()
        cuts = torch.where(spikes == k, optimizer.state[p]["exp_avg"], cuts)
    assert [f"{cut:.1f}" for cut in cuts.tolist()] == list(table.values())
