"""The polynomial exp of csrc/math against float64 and extended precision, over all of its domain."""

import numpy as np
import pytest


def negative_floats():
    """Every 251st float32 in [-87, -0]: all exponents, and about 4.4 million numbers."""
    least = np.float32(87).view(np.uint32)
    return -np.arange(0, least, 251, dtype=np.uint32).view(np.float32)


def test_every_float_has_its_exp_within_two_roundings(math_module):
    x = negative_floats()
    exact = np.exp(x.astype(np.float64))
    error = np.abs(math_module.exp_float(x) - exact) / exact
    assert error.max() <= 2 * 2.0**-24 * 1.0001, f"{error.max() * 2**24} roundings at {x[error.argmax()]}"


def test_doubles_have_their_exp_within_two_roundings(math_module):
    x = -np.concatenate([np.linspace(0, 707, 200_003), np.logspace(-300, 2.8, 20_001), np.arange(1, 1020) * np.log(2)])
    exact = np.exp(x.astype(np.longdouble))
    error = np.abs(math_module.exp_double(x) - exact) / exact
    assert error.max() <= 2 * 2.0**-53 * 1.0001, f"{error.max() * 2.0**53} roundings at {x[error.argmax()]}"


@pytest.mark.parametrize("kind", ["float", "double"])
def test_the_ends_of_the_domain(math_module, kind):
    exp, number = getattr(math_module, f"exp_{kind}"), {"float": np.float32, "double": np.float64}[kind]
    info = np.finfo(number)
    assert exp(number(0)) == 1
    assert exp(number(-0.0)) == 1
    assert exp(-info.tiny) == 1
    for x in (-np.inf, -info.max, -1e30, np.log(info.tiny) - 1):  # no subnormal result: those are 0
        assert exp(number(x)) == 0
    assert not np.signbit(exp(number(-np.inf)))
    assert np.isnan(exp(number(np.nan)))
    # What rounding may leave above zero.
    assert abs(exp(number(info.eps)) - 1) <= 2 * info.eps


def test_a_float_exp_never_falls_as_x_rises(math_module):
    x = np.sort(negative_floats())
    assert (np.diff(math_module.exp_float(x).astype(np.float64)) >= -np.exp(x[1:].astype(np.float64)) * 2.0**-23).all()
