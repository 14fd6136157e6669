"""The elementary functions of the Triton kernels, in the interpreter (on a GPU by the oracle's tests of make gpu-test)."""

import pytest
import torch
import triton
import triton.language as tl

from ladderkern.runtime.math_kernels import exp

pytestmark = pytest.mark.interpreter


@triton.jit
def _exp(p_x, p_out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(p_out + i, exp(tl.load(p_x + i)))


def exp_of(x):
    out = torch.empty_like(x)
    _exp[(1,)](x, out, x.numel())
    return out


def test_exp_is_within_two_roundings_down_to_the_smallest_normal_number():
    x = torch.linspace(-87.0, 88.0, 2**14)
    exact = x.double().exp()
    assert ((exp_of(x).double() - exact).abs() / exact).max().item() <= 2 * torch.finfo(torch.float32).eps


def test_exp_goes_to_zero_and_keeps_nan():
    found = exp_of(torch.tensor([0.0, -100.0, -104.0, -1e30, -torch.inf, torch.nan, -0.0, 1.0]))
    assert found[0] == found[6] == 1.0
    assert abs(found[1].item() - 2.0**-149 * round(2.718281828459045**-100 / 2.0**-149)) <= 2.0**-149
    assert (found[2:5] == 0.0).all()
    assert found[5].isnan()
