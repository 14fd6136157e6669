"""The building blocks of the reference: polynomials, Philox, stochastic rounding, and its gradients."""

import math

import mpmath
import pytest
import torch

import ladderkern
from ladderkern.spam import reference
from ladderkern.testing import assert_within_budget, floats

DTYPES = [torch.float32, torch.float64]

# Random123's known-answer file, philox4x32 of 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expm1_is_as_near_as_pytorchs_in_every_binade(dtype):
    for exponent in range(-30, 7):  # within a binade a bound on the largest error is a bound on the relative error
        x = -torch.linspace(2.0**exponent, min(2.0 ** (exponent + 1), 79.0), 300, dtype=dtype)
        oracle = torch.tensor([math.expm1(value) for value in x.tolist()], dtype=torch.float64)
        assert_within_budget(reference.expm1(x), torch.expm1(x), oracle, f"expm1 near -2^{exponent}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expm1_reaches_its_limits(dtype):
    x = torch.tensor([0.0, -80.0, -1e5, -math.inf], dtype=dtype)
    assert reference.expm1(x).tolist() == [0.0, -1.0, -1.0, -1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sine_is_as_near_as_pytorchs_in_every_binade(dtype):
    for exponent in range(-30, 1):
        x = torch.linspace(2.0**exponent, min(2.0 ** (exponent + 1), math.pi / 2), 300, dtype=dtype)
        oracle = torch.tensor([math.sin(value) for value in x.tolist()], dtype=torch.float64)
        assert_within_budget(reference.sine(x), torch.sin(x), oracle, f"sine near 2^{exponent}")


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0), (0.5, 0.9999999)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_size_is_the_bias_correction_in_double_precision(dtype, betas):
    options = reference.Hyper(*betas, 0.0, 0.0, 0.0, 0, 150, 20, False, False, False, 16, False, 0)
    n = torch.cat([torch.arange(1, 300), torch.tensor([10_000, 2**24])]).to(torch.float32)
    size, decay = reference.step_scalars(n, torch.ones((), dtype=torch.float64), options, dtype)
    with mpmath.workdps(50):  # in float64, 1 - beta^n itself loses the digits that are looked at
        corrections = [[1 - mpmath.mpf(beta) ** int(t) for beta in betas] for t in n.tolist()]
        oracle = torch.tensor([float(mpmath.sqrt(second) / first) for first, second in corrections], dtype=torch.float64)
    assert_within_budget(size, oracle.to(dtype), oracle, "step size")
    assert (decay == 1).all()


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    seed = key[0] | key[1] << 32
    seed = seed - 2**64 if seed >= 2**63 else seed  # the op's int64
    words = reference.philox([torch.tensor([c]) for c in counter], seed, 0)
    assert [int(w) for w in words] == answer


def test_random_words_are_the_words_of_consecutive_philox_blocks():
    words = reference.random_words(torch.arange(8), 3, 5, 7, 0)
    blocks = [reference.philox([torch.tensor(b), torch.tensor(0), torch.tensor(3), 5], 7, 0) for b in range(2)]
    assert words.tolist() == [int(w) for block in blocks for w in block]


def test_random_words_past_two_to_the_34_use_the_high_counter_word():
    low, high = (reference.random_words(torch.tensor([p]), 0, 0, 0, 0) for p in (4, 4 + 2**34))
    block = reference.philox([torch.tensor(1), torch.tensor(1), 0, 0], 0, 0)
    assert int(high) == int(block[0]) != int(low)


def test_stochastic_rounding_is_unbiased():
    noise = torch.arange(2**16)  # every noise there is, once: the mean is exact, no statistics
    for fraction in (0, 1, 0x1234, 0x8000, 0xFFFF):
        x = torch.tensor(0x3F80_0000 + fraction, dtype=torch.int32).view(torch.float32)
        up = reference.round_stochastically(x.expand(2**16).contiguous(), noise).double() - 1.0
        assert up.sum().item() == fraction * 2.0**-7  # one step of bfloat16 above 1 is 2^-7


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_stochastic_rounding_only_goes_to_the_two_neighbours(sign):
    x = sign * floats((4096,), seed=1).abs()
    down = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)
    up = ((x.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    rounded = reference.round_stochastically(x, torch.randint(2**16, (4096,))).float()
    assert ((rounded == down) | (rounded == up)).all()


def test_stochastic_rounding_keeps_what_bfloat16_can_hold():
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-133, 3.3895313892515355e38, math.inf, -math.inf])
    for noise in (0, 1, 0xFFFF):
        rounded = reference.round_stochastically(values, torch.full((8,), noise))
        assert torch.equal(rounded.view(torch.int16), values.bfloat16().view(torch.int16))


def test_stochastic_rounding_keeps_every_nan():
    bits = torch.tensor([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32)
    for noise in (0, 0xFFFF):
        assert reference.round_stochastically(bits.view(torch.float32), torch.full((5,), noise)).isnan().all()


def test_bfloat16_moments_are_unbiased_over_many_steps(backend):
    n = 1024
    p = torch.nn.Parameter(torch.zeros(n))
    optimizer = ladderkern.SPAM([p], betas=(0.9, 0.999), state_dtype=torch.bfloat16, reset_interval=0, threshold=0)
    for _ in range(300):
        p.grad = torch.ones(n)
        optimizer.step()
    v = optimizer.state[p]["exp_avg_sq"].double()
    true = 1 - 0.999**300
    # Rounded to nearest, v stalls far below (facts 5.5). The mean of n independent walks lies within 6 standard errors.
    assert abs(v.mean().item() - true) < 6 * v.std().item() / math.sqrt(n)
    assert v.std() > 0


def bfloat16_moments_after(gradient, **options):
    p = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = ladderkern.SPAM([p], betas=(0.5, 0.5), state_dtype=torch.bfloat16, **options)
    p.grad = gradient
    optimizer.step()
    return optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]


def test_the_two_moments_are_rounded_independently(backend):
    # Halves of 1 + 0.3 and of about 1 + 0.6 steps of bfloat16: both are rounded either way often.
    m, v = bfloat16_moments_after(torch.full((64, 64), 1 + 0.3 / 128))
    assert len(m.unique()) == 2
    assert len(v.unique()) == 2
    low_m, low_v = m == m.min(), v == v.min()
    # Independent draws: the share of pairs that agree is binomial, within 6 standard deviations of its mean.
    share_m, share_v = low_m.double().mean().item(), low_v.double().mean().item()
    expected = share_m * share_v + (1 - share_m) * (1 - share_v)
    agree = (low_m == low_v).double().mean().item()
    assert abs(agree - expected) < 6 * math.sqrt(expected * (1 - expected) / m.numel())


def test_another_step_index_or_element_is_rounded_otherwise(backend):
    def moments(n=0, index=0):
        params = [torch.nn.Parameter(torch.zeros(256)) for _ in range(index + 1)]
        optimizer = ladderkern.SPAM(params, betas=(0.5, 0.5), state_dtype=torch.bfloat16)
        zeros = [torch.zeros(256, dtype=torch.bfloat16) for _ in range(2)]
        optimizer.state[params[-1]] = {"step": torch.tensor(float(n)), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        params[-1].grad = torch.full((256,), 1 + 0.3 / 128)
        optimizer.step()
        return optimizer.state[params[-1]]["exp_avg"]

    draws = [moments(), moments(n=1), moments(index=1), moments().roll(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_bfloat16_moments_that_need_no_rounding_are_exact(backend):
    g = 2.0 ** torch.arange(-40, 40).repeat(20)
    m, v = bfloat16_moments_after(g)
    assert torch.equal(m.float(), g / 2)
    assert torch.equal(v.float(), g * g / 2)


def test_bfloat16_moments_keep_nan_and_infinity(backend):
    m, v = bfloat16_moments_after(torch.tensor([math.inf, -math.inf, math.nan] * 50))
    assert [str(x) for x in m.tolist()] == ["inf", "-inf", "nan"] * 50
    assert [str(x) for x in v.tolist()] == ["inf", "inf", "nan"] * 50


def test_backends_draw_the_same_roundings(backend, assert_bitwise_equal):
    g = floats((40, 48), seed=1)  # times 0.5 and its square times 0.5: one rounding each, the same everywhere
    moments = bfloat16_moments_after(g, seed=2**40 + 3, density=0.25)
    with ladderkern.backend("reference"):
        assert_bitwise_equal(moments, bfloat16_moments_after(g, seed=2**40 + 3, density=0.25))
