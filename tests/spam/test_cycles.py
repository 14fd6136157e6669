"""The phases of a cycle: reset, warm-up and clipping, by each parameter's own step; zeros, infinities and NaN."""

import math

import pytest
import torch

import ladderkern
from ladderkern.testing import assert_within_budget, floats

SHORT = {"reset_interval": 7, "warmup_steps": 3, "unclipped_steps": 2}
VARIANTS = [
    {},
    {"bias_correction": "cycle"},
    {"zero_variance": "freeze"},
    {"threshold": 0.0},
    {"threshold": 50.0},
    {"reset_interval": 0},
    {"reset_interval": 1},
    {"warmup_steps": 0},
    {"unclipped_steps": 0},
    {"maximize": True, "weight_decay": 0.1, "lr": 0.1},
    {"betas": (0.0, 0.5)},
    {"betas": (0.9, 0.0)},
    {"eps": 0.0, "reset_interval": 3},
]


@pytest.mark.filterwarnings("ignore:warmup_steps")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_more_than_two_cycles_equal_the_simulation(backend, simulation, spiky_gradients, train, variant):
    options = {**SHORT, **variant}
    p = torch.nn.Parameter(floats((16, 33), seed=1))
    eager, oracle = (simulation(p, dtype, **options) for dtype in (torch.float32, torch.float64))
    optimizer = ladderkern.SPAM([p], **options)
    for g in spiky_gradients(24, p.shape):
        train(optimizer, [[g]])
        eager.step(g)
        oracle.step(g)
        assert optimizer.state[p]["step"] == oracle.n
        assert_within_budget(p.detach(), eager.p, oracle.p, f"step {oracle.n}: p")
        assert_within_budget(optimizer.state[p]["exp_avg"], eager.m, oracle.m, f"step {oracle.n}: exp_avg")
        assert_within_budget(optimizer.state[p]["exp_avg_sq"], eager.v, oracle.v, f"step {oracle.n}: exp_avg_sq")


@pytest.mark.parametrize(("option", "none"), [("threshold", 0.0), ("reset_interval", 0)])
def test_none_means_never_as_zero_does(backend, train, spiky_gradients, assert_bitwise_equal, option, none):
    params = [torch.nn.Parameter(floats((33,), seed=1)) for _ in range(2)]
    for p, value in zip(params, (None, none), strict=True):
        train(ladderkern.SPAM([p], **{**SHORT, option: value}), [[g] for g in spiky_gradients(16, (33,))])
    assert_bitwise_equal(params[:1], params[1:])


@pytest.mark.parametrize("density", [1.0, 0.25])
def test_moments_restart_from_zero_at_each_multiple_of_the_interval(backend, train, density):
    p = torch.nn.Parameter(torch.zeros(16, 16))
    optimizer = ladderkern.SPAM([p], betas=(0.5, 0.5), density=density, **SHORT)
    restarts = []
    for n in range(1, 23):
        train(optimizer, [[torch.ones(16, 16)]])
        if (optimizer.state[p]["exp_avg"] == 0.5).all():
            restarts.append(n)
    assert restarts == [1, 7, 14, 21]


def test_a_gradient_missing_at_the_reset_puts_it_off(backend, simulation, spiky_gradients, train):
    missed = (7, 14, 15)
    p = torch.nn.Parameter(floats((33,), seed=1))
    eager, oracle = (simulation(p, dtype, **SHORT) for dtype in (torch.float32, torch.float64))
    optimizer = ladderkern.SPAM([p], **SHORT)
    for n, g in enumerate(spiky_gradients(24, p.shape), start=1):
        train(optimizer, [[None if n in missed else g]])
        if n not in missed:
            eager.step(g)
            oracle.step(g)
        assert optimizer.state[p]["step"] == oracle.n
    assert_within_budget(p.detach(), eager.p, oracle.p)
    assert_within_budget(optimizer.state[p]["exp_avg_sq"], eager.v, oracle.v)


def test_parameters_in_different_phases_do_not_disturb_each_other(backend, spiky_gradients, train, assert_bitwise_equal):
    gradients = spiky_gradients(20, (33,))
    pair = [torch.nn.Parameter(floats((33,), seed=s)) for s in range(2)]
    train(ladderkern.SPAM(pair, **SHORT), [[g, g if n >= 3 else None] for n, g in enumerate(gradients)])
    alone = [torch.nn.Parameter(floats((33,), seed=s)) for s in range(2)]
    train(ladderkern.SPAM(alone[:1], **SHORT), [[g] for g in gradients])
    train(ladderkern.SPAM(alone[1:], **SHORT), [[g] for g in gradients[3:]])
    assert_bitwise_equal(pair, alone)


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_of_the_old_moments_survives_a_reset(backend, train, moments):
    poisoned, clean = (torch.nn.Parameter(torch.ones(16, 16)) for _ in range(2))
    for p, value in ((poisoned, math.nan), (clean, 1.0)):
        optimizer = ladderkern.SPAM([p], state_dtype=moments, **SHORT)
        optimizer.state[p] = {
            "step": torch.tensor(6.0),
            "exp_avg": torch.full((16, 16), value, dtype=moments),
            "exp_avg_sq": torch.full((16, 16), value, dtype=moments),
        }
        train(optimizer, [[torch.ones(16, 16)]])
    assert torch.equal(poisoned, clean)


def after_silence(zero_variance, backend_train):
    """A parameter whose gradient is 0 for 10 steps, then 1, with clipping on; and its variance."""
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = ladderkern.SPAM([p], zero_variance=zero_variance, unclipped_steps=5)
    backend_train(optimizer, [[torch.zeros(4)]] * 10 + [[torch.ones(4)]])
    return p.detach(), optimizer.state[p]["exp_avg_sq"]


def test_a_first_gradient_after_zeros_passes(backend, train):
    p, v = after_silence("pass", train)
    assert (p < 0).all()
    assert torch.equal(v, torch.full((4,), 1 - 0.999))


def test_a_first_gradient_after_zeros_freezes_on_request(backend, train):
    p, v = after_silence("freeze", train)
    assert (p == 0).all()
    assert (v == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_a_gradient_that_is_not_finite_spoils_its_own_element_alone(backend, train, assert_bitwise_equal, bad, density):
    hit, whole = (torch.nn.Parameter(floats((16, 32), seed=1)) for _ in range(2))
    gradients = [floats((16, 32), seed=10 + n) for n in range(4)]
    spoilt = [g.clone() for g in gradients]
    spoilt[2][3, 5] = bad
    train(ladderkern.SPAM([hit], density=density), [[g] for g in spoilt])
    train(ladderkern.SPAM([whole], density=density), [[g] for g in gradients])
    other = torch.ones(16, 32, dtype=torch.bool)
    other[3, 5] = False
    assert_bitwise_equal([hit.detach()[other]], [whole.detach()[other]])
    drawn = density == 1.0 or ladderkern.spam.mask((16, 32), density)[3, 5]
    assert torch.isfinite(hit[3, 5]) == (not drawn)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinite_gradient_is_cut_like_any_spike(backend, train, assert_bitwise_equal, sign):
    infinite, large = (torch.nn.Parameter(torch.zeros(9)) for _ in range(2))
    for p, spike in ((infinite, math.inf), (large, 1e15)):
        optimizer = ladderkern.SPAM([p], unclipped_steps=2)
        train(optimizer, [[torch.ones(9)]] * 3 + [[torch.full((9,), sign * spike)]] + [[torch.ones(9)]] * 3)
    assert_bitwise_equal([infinite], [large])
    assert torch.isfinite(infinite).all()


def test_nan_is_not_hidden_by_clipping(backend, train):
    p = torch.nn.Parameter(torch.zeros(4))
    train(ladderkern.SPAM([p], unclipped_steps=0), [[torch.ones(4)]] * 3 + [[torch.tensor([1.0, math.nan, 1.0, 1.0])]])
    assert torch.isnan(p).tolist() == [False, True, False, False]


def test_nan_leaves_with_the_reset_but_stays_in_the_parameter(backend, train):
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = ladderkern.SPAM([p], **SHORT)
    train(optimizer, [[torch.tensor([math.nan, 1.0])]] + [[torch.ones(2)]] * 6)
    assert torch.isnan(p).tolist() == [True, False]
    assert torch.isfinite(optimizer.state[p]["exp_avg"]).all()


def test_step_counts_far_into_a_run(backend, train):
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = ladderkern.SPAM([p], lr=1.0, eps=0.0)
    before = 2.0**24 - 2  # 2^24 - 1 = 500 * 33554 + 215: a step past the ramp
    optimizer.state[p] = {
        "step": torch.tensor(before),
        "exp_avg": torch.zeros(1, dtype=torch.float64),
        "exp_avg_sq": torch.zeros(1, dtype=torch.float64),
    }
    train(optimizer, [[torch.ones(1, dtype=torch.float64)]])
    assert optimizer.state[p]["step"] == before + 1
    oracle = torch.tensor([-(1 - 0.9) / math.sqrt(1 - 0.999)], dtype=torch.float64)  # all correction gone
    assert_within_budget(p.detach(), oracle, oracle)
