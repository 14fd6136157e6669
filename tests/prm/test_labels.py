"""Labels: from completions, the first error in them, and what a judge agrees with."""

import itertools

import pytest
import torch

from ladderkern import prm


def test_monte_carlo_labels_of_eight_completions():
    successes = torch.arange(8) < torch.tensor([0, 1, 4, 8])[:, None]
    hard, soft = prm.monte_carlo_labels(successes)
    assert hard.tolist() == [0, 1, 1, 1]
    assert soft.tolist() == [0.0, 0.125, 0.5, 1.0]
    assert (hard.dtype, soft.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("eighths", range(8))
def test_a_step_is_right_above_the_threshold_not_at_it(eighths):
    successes = torch.arange(8) < torch.arange(9)[:, None]
    hard = prm.monte_carlo_labels(successes, threshold=eighths / 8).hard
    assert hard.tolist() == [int(count > eighths) for count in range(9)]


def test_no_steps_have_no_labels():
    hard, soft = prm.monte_carlo_labels(torch.zeros(0, 8, dtype=torch.bool))
    assert hard.shape == soft.shape == (0,)


SIZES = [3, 0, 1, 4, 2, 0]
LABELS = [1, 0, 1, 0, 1, -100, 0, 0, 1, 1]
FIRST = [1, -1, 0, 2, -1, -1]
DROPPED = [1, 0, -100, 0, 1, -100, 0, -100, 1, 1]
OFFSETS = torch.tensor([0, *SIZES]).cumsum(0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32], ids=str)
def test_first_error_is_the_first_zero(dtype):
    assert prm.first_error(torch.tensor(LABELS, dtype=dtype), OFFSETS).tolist() == FIRST
    assert prm.first_error(torch.tensor(LABELS, dtype=dtype), OFFSETS.int()).tolist() == FIRST


def test_soft_labels_are_wrong_at_zero_alone():
    assert prm.first_error(torch.tensor([0.5, 0.125, 0.0]), torch.tensor([0, 2, 3])).tolist() == [-1, 0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32], ids=str)
def test_dropping_keeps_the_first_error_and_nothing_after_it(dtype):
    labels = torch.tensor(LABELS, dtype=dtype)
    dropped = prm.drop_after_first_error(labels, OFFSETS)
    assert dropped.dtype == dtype
    assert dropped.tolist() == DROPPED
    assert labels.tolist() == LABELS


def test_bool_labels():
    labels = torch.tensor([True, False, True])
    assert prm.first_error(labels, torch.tensor([0, 3])).tolist() == [1]
    assert prm.drop_after_first_error(labels, torch.tensor([0, 3])).tolist() == [1, 0, -100]


def test_no_responses():
    none = torch.zeros(0, dtype=torch.int64)
    assert prm.first_error(none, torch.tensor([0])).shape == (0,)
    assert prm.drop_after_first_error(none, torch.tensor([0])).shape == (0,)


def test_the_filter_keeps_what_both_place_alike():
    mc, judge = torch.tensor([-1, -1, 2, 2, 0]), torch.tensor([-1, 0, 2, 3, -1])
    assert prm.consensus_filter(mc, judge).tolist() == [True, False, True, False, False]


def test_labels_from_completions_to_the_filter():
    successes = torch.rand(40, 8) < torch.rand(40, 1)
    offsets = torch.tensor([0, 10, 20, 40])
    first = prm.first_error(prm.monte_carlo_labels(successes).hard, offsets)
    expected = []
    for start, end in itertools.pairwise(offsets):
        failed = [i for i, row in enumerate(successes[start:end]) if not row.any()]
        expected.append(failed[0] if failed else -1)
    assert first.tolist() == expected


BOOLS, INTS = torch.ones(4, 8, dtype=torch.bool), torch.ones(4, dtype=torch.int64)
BAD = [
    ("successes", TypeError, lambda: prm.monte_carlo_labels(BOOLS.long())),
    ("successes", ValueError, lambda: prm.monte_carlo_labels(BOOLS[0])),
    ("successes", ValueError, lambda: prm.monte_carlo_labels(BOOLS[:, :0])),
    ("threshold", ValueError, lambda: prm.monte_carlo_labels(BOOLS, threshold=1.0)),
    ("threshold", ValueError, lambda: prm.monte_carlo_labels(BOOLS, threshold=float("nan"))),
    ("labels", ValueError, lambda: prm.first_error(INTS.view(2, 2), torch.tensor([0, 4]))),
    ("offsets", TypeError, lambda: prm.first_error(INTS, torch.tensor([0.0, 4.0]))),
    ("offsets", ValueError, lambda: prm.first_error(INTS, torch.tensor([0, 3]))),
    ("offsets", ValueError, lambda: prm.first_error(INTS, torch.tensor([1, 4]))),
    ("offsets", ValueError, lambda: prm.first_error(INTS, torch.tensor([0, 3, 2, 4]))),
    ("offsets", ValueError, lambda: prm.first_error(INTS, torch.tensor([], dtype=torch.int64))),
    ("mc_first_error", TypeError, lambda: prm.consensus_filter(INTS.float(), INTS)),
    ("judge_first_error", TypeError, lambda: prm.consensus_filter(INTS, INTS > 0)),
    ("judge_first_error", ValueError, lambda: prm.consensus_filter(INTS, INTS[1:])),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, call):
    with pytest.raises(error, match=name):
        call()
