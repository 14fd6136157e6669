"""The polynomial logarithms of csrc/math and the scores of a step made of them, against float64 and extended precision."""

import numpy as np
import pytest

NUMBERS = {"float": np.float32, "double": np.float64}


@pytest.fixture(params=list(NUMBERS))
def formula(request, math_module):
    """(functions by name, their number type, numbers more precise than it)."""
    number = NUMBERS[request.param]
    wider = np.float64 if number is np.float32 else np.longdouble
    return (lambda name: getattr(math_module, f"{name}_{request.param}")), number, wider


def positive(number, most):
    """Numbers in (0, most] with all exponents and several million mantissas; the subnormal ones too."""
    if number is np.float32:
        return np.arange(1, np.float32(most).view(np.uint32) + 1, 307, dtype=np.uint32).view(np.float32)
    spread = np.concatenate([2.0 ** np.arange(-1074, 0), np.logspace(-323, 0, 200_003), np.linspace(1e-3, 1, 1_000_003)])
    return spread if most == 1 else np.concatenate([spread, np.linspace(1, 4, 300_007), np.logspace(0, 308, 100_003)])


def roundings(actual, exact):
    """The largest relative error in roundings of the number type, where the result is a normal number, and where that is."""
    info = np.finfo(actual.dtype)
    normal = np.abs(exact) >= info.tiny
    error = np.abs(actual - exact)[normal] / np.abs(exact[normal])
    return float(error.max() * 2 / info.eps), np.flatnonzero(normal)[error.argmax()]


def test_log1p_of_the_unit_interval_is_within_3_roundings(formula):
    functions, number, wider = formula
    x = np.append(positive(number, 1), number(1))
    error, at = roundings(functions("log1p")(x), np.log1p(x.astype(wider)))
    assert error <= 3, f"{error} roundings at {x[at]}"


def test_log_is_within_2_roundings(formula):
    functions, number, wider = formula
    for x in (positive(number, np.finfo(number).max), np.linspace(0.5, 2, 2_000_003).astype(number)):  # near 1 it is small
        error, at = roundings(functions("log")(x), np.log(x.astype(wider)))
        assert error <= 2, f"{error} roundings at {x[at]}"


def test_the_ends_of_the_domains(formula):
    functions, number, _ = formula
    log, log1p = functions("log"), functions("log1p")
    assert log(number(1)) == 0
    assert log1p(number(0)) == 0
    assert log(number(0)) == log(number(-0.0)) == -np.inf
    assert np.isnan([log(number(np.nan)), log(number(-1)), log(number(-np.inf)), log1p(number(np.nan))]).all()
    tiny = np.finfo(number).smallest_subnormal
    assert abs(log(tiny) / np.log(np.longdouble(tiny)) - 1) <= np.finfo(number).eps
    assert log1p(tiny) == tiny


def margins(number):
    most = 87 if number is np.float32 else 700
    near = np.random.default_rng(0).standard_normal(1_000_000) * 4
    tiny = np.logspace(-30, 0, 10_001)
    return np.concatenate([np.linspace(-most, most, 1_000_003), near, tiny, -tiny]).astype(number)


def test_scores_of_a_margin_are_exact_to_the_last_digits_on_both_sides(formula):
    functions, number, wider = formula
    z = margins(number)
    x = z.astype(wider)
    decay = np.exp(-np.abs(x))
    expected = {
        "prob": np.where(x < 0, decay, 1) / (1 + decay),
        "wrong_prob": np.where(x < 0, 1, decay) / (1 + decay),
        "log_prob": np.minimum(x, 0) - np.log1p(decay),
    }
    for name, exact in expected.items():
        error, at = roundings(functions(name)(z), exact)
        assert error <= 4, f"{name}: {error} roundings at {z[at]}"


def test_wrong_and_right_are_mirrored_and_monotone(formula):
    functions, number, _ = formula
    z = np.sort(margins(number))
    prob, log_prob = functions("prob")(z), functions("log_prob")(z)
    assert np.array_equal(functions("wrong_prob")(z), functions("prob")(-z))
    slack = 4 * np.finfo(number).eps
    assert (prob[1:] >= prob[:-1] * (1 - slack)).all()
    assert (log_prob[1:] >= log_prob[:-1] * (1 + slack)).all()


def test_scores_of_the_least_and_greatest_margins(formula):
    functions, number, _ = formula
    for z, prob, log_prob in ((np.inf, 1, 0), (-np.inf, 0, -np.inf), (np.finfo(number).max, 1, 0), (0.0, 0.5, np.log(0.5))):
        assert functions("prob")(number(z)) == prob
        assert functions("wrong_prob")(number(z)) == 1 - prob
        assert functions("log_prob")(number(z)) == pytest.approx(log_prob, rel=float(np.finfo(number).eps))
    assert functions("log_prob")(-np.finfo(number).max) == -np.finfo(number).max
    assert np.isnan([functions(name)(number(np.nan)) for name in ("prob", "wrong_prob", "log_prob")]).all()
