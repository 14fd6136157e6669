"""The arithmetic of the published code, and numbers measured on it (facts/spam.md sections 1 and 7)."""

import math

import pytest
import torch

import ladderkern
from ladderkern.testing import assert_within_budget, floats

# T, W, unclipped steps, steps taken: more than two cycles each; the second truncates the ramp, the third has none.
CYCLES = [(37, 11, 20, 120), (10, 25, 3, 33), (12, 0, 0, 40)]


@pytest.mark.filterwarnings("ignore:warmup_steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("interval", "warmup", "unclipped", "steps"), CYCLES)
def test_steps_equal_the_published_arithmetic(
    backend, simulation, spiky_gradients, interval, warmup, unclipped, steps, dtype
):
    options = {
        "reset_interval": interval,
        "warmup_steps": warmup,
        "unclipped_steps": unclipped,
        "zero_variance": "freeze",
    }
    p = torch.nn.Parameter(floats((16, 33), dtype, seed=99))
    eager, oracle = (simulation(p, d, **options) for d in (dtype, torch.float64))
    optimizer = ladderkern.SPAM([p], **options)
    for g in spiky_gradients(steps, p.shape, dtype):
        p.grad = g
        optimizer.step()
        eager.step(g)
        oracle.step(g)
        state = optimizer.state[p]
        assert_within_budget(p.detach(), eager.p, oracle.p, f"step {oracle.n}: p")
        assert_within_budget(state["exp_avg"], eager.m, oracle.m, f"step {oracle.n}: exp_avg")
        assert_within_budget(state["exp_avg_sq"], eager.v, oracle.v, f"step {oracle.n}: exp_avg_sq")


def test_default_schedule_over_two_resets_equals_the_published_arithmetic(backend, simulation, spiky_gradients):
    p = torch.nn.Parameter(floats((64,), seed=99))
    eager, oracle = (
        simulation(p, d, zero_variance="freeze", weight_decay=0.0) for d in (torch.float32, torch.float64)
    )
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
    _, before = step_on([1.0] * 29)
    _, after = step_on([1.0] * 29 + [math.inf])
    cut = (after["exp_avg"] - 0.9 * before["exp_avg"]).item() / (1 - 0.9)
    assert f"{cut:.6f}" == "11.957767"


def test_spike_of_ten_thousand_leaves_the_clipped_variance(backend):
    _, state = step_on([1.0] * 39 + [1e4])
    assert f"{state['exp_avg_sq'].item():.5f}" == "0.22957"


def test_first_step_divides_by_the_uncorrected_variance(backend):
    p, _ = step_on([2.0], lr=0.1)
    step_size = 0.1 * math.sqrt(1 - 0.999) / (1 - 0.9)
    assert f"{-p / step_size:.8f}" == "3.16222766"  # 0.2 / (sqrt(0.004) + 1e-6) in float64; float32 gives ...763


@pytest.mark.parametrize(("k", "cut"), [(20, "10.0"), (50, "15.6"), (100, "21.8"), (200, "30.1"), (499, "44.3")])
def test_cut_relative_to_the_running_rms_follows_the_published_table(backend, k, cut):
    ones = [1.0] * (500 + k)
    _, before = step_on(ones)
    _, after = step_on([*ones, 1e9])
    # k gradients of 1 since the reset at call 500, which itself holds the first: k + 1 in all, then the spike at k + 1.
    assert before["step"] == 500 + k
    clipped = ((after["exp_avg"] - 0.9 * before["exp_avg"]) / (1 - 0.9)).item()
    assert f"{math.sqrt(5000 * (1 - 0.999**(k + 1))):.6f}" == f"{clipped:.6f}" or k == 499
    assert f"{math.sqrt(5000 * (1 - 0.999**k)):.1f}" == cut
