"""Evaluation: percentages, thresholds and tables against loops in Python."""

import math

import pytest
import torch

from ladderkern import prm
from ladderkern.testing import floats

SIZES = [4, 0, 1, 7, 3, 12, 1, 0]
OFFSETS = torch.tensor([0, *SIZES]).cumsum(0)
S = int(OFFSETS[-1])


def scores(dtype=torch.float32):
    return prm.score_steps(2 * floats((S, 2), dtype), OFFSETS)


def numbers(result):
    return [field.item() for field in result]


def test_process_bench_counts_exact_matches_of_each_class():
    label = torch.tensor([-1, -1, -1, -1, 0, 2, 2, 5, 7])
    predicted = torch.tensor([-1, -1, -1, 3, 0, 2, 1, -1, 7])
    error, correct, f1 = numbers(prm.process_bench(predicted, label))
    assert (error, correct) == (60.0, 75.0)
    assert f1 == pytest.approx(2 * 60 * 75 / 135, rel=1e-15)


@pytest.mark.parametrize(
    ("label", "error", "correct"), [([-1, -1], math.nan, 50.0), ([3, 0], 50.0, math.nan), ([], math.nan, math.nan)]
)
def test_a_class_without_cases_has_no_accuracy_and_f1_zero(label, error, correct):
    label = torch.tensor(label, dtype=torch.int64)
    predicted = torch.tensor([-1, 0], dtype=torch.int64)[: len(label)]
    result = prm.process_bench(predicted, label)
    torch.testing.assert_close(torch.tensor(numbers(result)), torch.tensor([error, correct, 0.0]), equal_nan=True)


def test_nothing_right_is_f1_zero():
    assert numbers(prm.process_bench(torch.tensor([0, -1]), torch.tensor([-1, 0]))) == [0.0, 0.0, 0.0]


def test_subsets_are_scored_apart_and_averaged_plainly():
    label = torch.randint(-1, 4, (200,))
    predicted = torch.where(torch.rand(5, 200) < 0.6, label, torch.randint(-1, 4, (5, 200)))
    subset = torch.randint(0, 3, (200,)) * torch.randint(1, 3, (200,)) % 3
    result = prm.process_bench_subsets(predicted, label, subset, 4)
    alone = [prm.process_bench(predicted[:, subset == i], label[subset == i]) for i in range(4)]
    for field in ("error_acc", "correct_acc", "f1"):
        expected = torch.stack([getattr(one, field) for one in alone], dim=-1)
        torch.testing.assert_close(getattr(result.subsets, field), expected, equal_nan=True)
    assert (result.subsets.f1[:, 3] == 0).all()  # no case
    torch.testing.assert_close(result.mean_f1, sum(one.f1 for one in alone) / 4)
    assert not torch.allclose(result.mean_f1, prm.process_bench(predicted, label).f1)


THRESHOLDS = [0.5, 0.0, 1.0, 0.25, 0.9, 0.5, 1e-3]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sweep_is_what_scoring_with_each_threshold_gives(backend, dtype, strict):
    logits = 2 * floats((S, 2), dtype)
    logits[3], logits[9], logits[20] = 0.5, 0.0, torch.tensor([0.0, 200.0])  # at the threshold 0.5, and a probability of 1
    swept = prm.first_error_sweep(prm.score_steps(logits, OFFSETS), OFFSETS, THRESHOLDS, strict=strict)
    assert swept.shape == (len(THRESHOLDS), len(SIZES))
    for row, threshold in zip(swept, THRESHOLDS, strict=True):
        expected = prm.score_steps(logits, OFFSETS, threshold=threshold, strict=strict).first_error
        assert torch.equal(row, expected), threshold


@pytest.mark.parametrize("strict", [False, True])
def test_the_sweep_of_given_probabilities_goes_by_these(backend, strict):
    prob = torch.rand(S)
    prob[::5] = torch.tensor(THRESHOLDS)[: len(prob[::5])]
    swept = prm.first_error_sweep(prm.score_probs(prob, OFFSETS), OFFSETS, THRESHOLDS, strict=strict, probabilities=True)
    for row, threshold in zip(swept, THRESHOLDS, strict=True):
        assert torch.equal(row, prm.score_probs(prob, OFFSETS, threshold=threshold, strict=strict).first_error), threshold


def test_a_nan_step_is_wrong_under_every_threshold():
    s = prm.score_steps(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0, 3]))
    s = s._replace(margin=torch.tensor([3.0, math.nan, -2.0]))
    assert prm.first_error_sweep(s, torch.tensor([0, 3]), [0.0, 0.5, 0.9]).T.tolist() == [[1, 1, 1]]


def test_the_sweep_gives_process_bench_a_row_a_threshold():
    s = scores()
    label = torch.randint(-1, 3, (len(SIZES),))
    swept = prm.first_error_sweep(s, OFFSETS, THRESHOLDS)
    result = prm.process_bench(swept, label)
    assert result.f1.shape == (len(THRESHOLDS),)
    for k in range(len(THRESHOLDS)):
        torch.testing.assert_close(result.f1[k], prm.process_bench(swept[k], label).f1)


def test_no_thresholds_and_no_responses():
    assert prm.first_error_sweep(scores(), OFFSETS, []).shape == (0, len(SIZES))
    none = prm.score_steps(torch.zeros(0, 2), torch.tensor([0]))
    assert prm.first_error_sweep(none, torch.tensor([0]), [0.5]).shape == (1, 0)


def test_the_share_of_last_minima_leaves_empty_responses_out(backend):
    s = scores()
    last = [argmin == size - 1 for argmin, size in zip(s.argmin.tolist(), SIZES, strict=True) if size]
    assert prm.min_is_last_share(s).item() == sum(last) / len(last)
    assert prm.min_is_last_share(prm.score_steps(torch.zeros(0, 2), torch.tensor([0, 0]))).isnan()


def test_the_table_is_what_a_loop_counts(backend):
    sizes = torch.tensor([3, 1, 0, 5, 4, 2])
    offsets = torch.arange(16) * 4
    logits = (floats((60,)) * 2).round()  # few values: ties
    correct = torch.tensor([1, 0, 0] + [1] + [0, 1, 0, 1, 0] + [0] * 4 + [1, 0]) == 1
    s = prm.score_steps(logits, offsets)
    table = prm.best_of_n_table(s, sizes, correct)
    for i, (name, values) in enumerate(zip(prm.STRATEGIES, prm.ranking(s), strict=True)):
        strict = ties = picked = start = 0
        for size in sizes.tolist():
            group, right = values[start : start + size].tolist(), correct[start : start + size].tolist()
            start += size
            best = max((v for v, r in zip(group, right, strict=True) if r), default=-math.inf)
            wrong = max((v for v, r in zip(group, right, strict=True) if not r), default=-math.inf)
            strict += any(right) and best > wrong
            ties += any(right) and best >= wrong
            picked += bool(right) and right[group.index(max(group))]
        assert [field[i].item() for field in table] == [strict, ties, picked], name
    assert (table.strict < table.ties).any()


def test_nan_ranks_below_all_in_the_table():
    s = prm.score_probs(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0, 1, 1, 2, 3]))  # the second response is empty
    table = prm.best_of_n_table(s, torch.tensor([2, 2]), torch.tensor([False, True, True, False]))
    assert [field.unique().tolist() for field in table] == [[0], [1], [1]]


I8 = torch.zeros(8, dtype=torch.int64)
BAD = [
    ("predicted", TypeError, lambda: prm.process_bench(I8.float(), I8)),
    ("label", TypeError, lambda: prm.process_bench(I8, I8 > 0)),
    ("label", ValueError, lambda: prm.process_bench(I8, I8.view(2, 4))),
    ("predicted", ValueError, lambda: prm.process_bench(I8[1:], I8)),
    ("label", ValueError, lambda: prm.process_bench(I8, I8 - 100)),
    ("predicted", ValueError, lambda: prm.process_bench(I8 - 2, I8)),
    ("subset", TypeError, lambda: prm.process_bench_subsets(I8, I8, I8.float(), 1)),
    ("subset", ValueError, lambda: prm.process_bench_subsets(I8, I8, I8[1:], 1)),
    ("subset", ValueError, lambda: prm.process_bench_subsets(I8, I8, I8 + 1, 1)),
    ("num_subsets", ValueError, lambda: prm.process_bench_subsets(I8, I8, I8, 0)),
    ("thresholds", ValueError, lambda: prm.first_error_sweep(scores(), OFFSETS, [0.5, 1.5])),
    ("thresholds", ValueError, lambda: prm.first_error_sweep(scores(), OFFSETS, [math.nan])),
    ("offsets", ValueError, lambda: prm.first_error_sweep(scores(), OFFSETS[:-2], [0.5])),
    ("correct", TypeError, lambda: prm.best_of_n_table(scores(), torch.tensor([8]), I8)),
    ("correct", ValueError, lambda: prm.best_of_n_table(scores(), torch.tensor([8]), I8[1:] > 0)),
    ("group_sizes", ValueError, lambda: prm.best_of_n_table(scores(), torch.tensor([7]), I8 > 0)),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, call):
    with pytest.raises(error, match=name):
        call()
