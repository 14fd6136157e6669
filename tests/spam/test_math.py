"""The scalar formulas of csrc/math against the reference, and the number conversions against torch, exhaustively."""

import math

import numpy as np
import pytest
import torch

from ladderkern.spam import reference

EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def some_floats():
    """Every 4099th float32 pattern, so all exponents and signs, and the halfway points of the 16-bit formats."""
    patterns = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32)
    halves = (EVERY_16_BITS.astype(np.uint32) << 16) + 0x8000
    float16_ties = torch.from_numpy(EVERY_16_BITS.view(np.float16).copy()).float().numpy()
    float16_ties = (float16_ties[1:] + float16_ties[:-1]) / 2
    return np.concatenate([patterns.view(np.float32), halves.view(np.float32), float16_ties.astype(np.float32)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_expm1_and_sine_are_within_two_roundings_of_the_exact_value(math_module, dtype):
    kind = "float" if dtype == torch.float32 else "double"
    numpy_type = np.float32 if dtype == torch.float32 else np.float64
    eps = torch.finfo(dtype).eps
    x = -np.concatenate([np.logspace(-8, 1.9, 4001), np.arange(1, 41) * math.log(2)]).astype(numpy_type)
    exact = torch.expm1(torch.from_numpy(x).double()).numpy()
    for got in (getattr(math_module, f"expm1_{kind}")(x), reference.expm1(torch.from_numpy(x)).numpy()):
        assert np.all(np.abs(got - exact) <= 2 * eps * np.abs(exact))
    angle = np.linspace(0, math.pi / 2, 4001).astype(numpy_type)
    exact = np.sin(angle.astype(np.float64))
    for got in (getattr(math_module, f"sine_{kind}")(angle), reference.sine(torch.from_numpy(angle)).numpy()):
        assert np.all(np.abs(got - exact) <= 2 * eps * np.abs(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warmup_equals_the_reference_at_every_step_of_three_cycles(math_module, dtype):
    n = np.arange(1, 1600)
    kind = "float" if dtype == torch.float32 else "double"
    got = torch.from_numpy(getattr(math_module, f"warmup_{kind}")(n, 500, 150))
    cycle, k = reference.phase(torch.from_numpy(n), 500)
    expected = reference.warmup(cycle, k, 150, dtype)
    assert torch.all((got - expected).abs() <= 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_widens_as_torch_does(math_module, dtype):
    name = str(dtype).removeprefix("torch.")
    expected = torch.from_numpy(EVERY_16_BITS.view(np.int16).copy()).view(dtype).float().numpy()
    got = getattr(math_module, f"widen_{name}")(EVERY_16_BITS)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(got[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(got[~numbers]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_narrow_as_torch_does(math_module, dtype):
    name = str(dtype).removeprefix("torch.")
    x = some_floats()
    expected = torch.from_numpy(x).to(dtype)
    got = torch.from_numpy(getattr(math_module, f"narrow_{name}")(x).view(np.int16)).view(dtype)
    numbers = ~torch.isnan(expected)
    assert torch.equal(got[numbers].view(torch.int16), expected[numbers].view(torch.int16))
    assert torch.isnan(got[~numbers]).all()


def test_stochastic_rounding_equals_the_reference_bit_for_bit(math_module):
    x = some_floats()
    noise = np.random.default_rng(0).integers(0, 1 << 16, x.shape).astype(np.uint32)
    expected = reference.round_stochastically(torch.from_numpy(x), torch.from_numpy(noise.astype(np.int64)))
    got = torch.from_numpy(math_module.round_stochastically(x, noise).view(np.int16))
    assert torch.equal(got, expected.view(torch.int16))


@pytest.mark.parametrize("counter", [(0, 0, 0, 0), (1, 2, 3, 4), (0xFFFFFFFF,) * 4])
def test_philox_equals_the_reference(math_module, counter):
    seed, stream = 0x0123456789ABCDEF, 0x5F3759DF
    expected = reference.philox([torch.tensor([word]) for word in counter], seed, stream)
    assert math_module.philox(*counter, seed, stream) == tuple(int(word) for word in expected)
