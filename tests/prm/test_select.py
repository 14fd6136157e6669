"""Choosing responses: against a loop in Python, and where naive code ties."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ladderkern import prm
from ladderkern.testing import floats

NAN, INF = math.nan, math.inf
# Few values, so that ties, NaN and infinities meet in a group.
GROUPS = st.lists(st.lists(st.sampled_from([NAN, -INF, -2.0, -0.0, 0.0, 1.5, INF]), max_size=6), max_size=6)


def sizes_of(groups):
    return torch.tensor([len(group) for group in groups], dtype=torch.int64)


def ranked(group):
    """Indices from the best to the worst: NaN last, ties in order."""
    return sorted(range(len(group)), key=lambda i: (math.isnan(group[i]), 0.0 if math.isnan(group[i]) else -group[i]))


def flat(groups, dtype=torch.float32):
    return torch.tensor([value for group in groups for value in group], dtype=dtype)


@settings(deadline=None)
@given(GROUPS)
@example([[NAN, -INF], [NAN, NAN]])
def test_best_of_n_is_the_first_of_the_best(groups):
    expected = [ranked(group)[0] if group else -1 for group in groups]
    assert prm.best_of_n(flat(groups), sizes_of(groups)).tolist() == expected


@settings(deadline=None)
@given(GROUPS, st.integers(1, 7))
@example([[NAN, -INF], [NAN, NAN]], 2)
def test_top_k_is_the_order_of_the_best(groups, k):
    expected = [(ranked(group) + [-1] * k)[:k] for group in groups]
    actual = prm.top_k(flat(groups), sizes_of(groups), k)
    assert actual.shape == (len(groups), k)
    assert actual.tolist() == expected


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN])), max_size=6), max_size=5))
def test_the_answer_of_the_highest_weight_wins(groups):
    expected = []
    for group in groups:
        totals = {}
        for answer, weight in group:
            totals[answer] = totals.get(answer, 0.0) + (0.0 if math.isnan(weight) else weight)
        given_answers = [answer for answer in totals if answer >= 0] or list(totals)
        best = max(given_answers, key=totals.get, default=None)
        expected.append(next((i for i, (answer, _) in enumerate(group) if answer == best or best == -1), -1))
    answers = torch.tensor([answer for group in groups for answer, _ in group], dtype=torch.int64)
    weights = torch.tensor([weight for group in groups for _, weight in group])
    assert prm.weighted_majority(answers, weights, sizes_of(groups)).tolist() == expected


def test_without_weights_the_majority_wins_and_equal_numbers_in_two_groups_are_two_answers():
    answers = torch.tensor([7, 3, 3, 7, 7, 3, 7])
    assert prm.weighted_majority(answers, None, torch.tensor([3, 4])).tolist() == [1, 0]


def test_votes_of_many_responses_add_up_exactly():
    # In float32 the sums of the two answers would be equal.
    weights = torch.tensor([2.0**24, 0.0, 2.0**24, 1.0])
    assert prm.weighted_majority(torch.tensor([0, 0, 1, 1]), weights, torch.tensor([4])).tolist() == [2]


def test_leading_dimensions_are_rankings():
    values, sizes = floats((3, 2, 20)), torch.tensor([5, 0, 8, 7])
    best, top = prm.best_of_n(values, sizes), prm.top_k(values, sizes, 3)
    assert best.shape == (3, 2, 4)
    for i in range(3):
        for j in range(2):
            assert torch.equal(best[i, j], prm.best_of_n(values[i, j], sizes))
            assert torch.equal(top[i, j], prm.top_k(values[i, j], sizes, 3))
    assert torch.equal(top[..., 0], best)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32], ids=str)
def test_any_real_dtype(dtype):
    values, sizes = torch.tensor([3, 7, 7, 2, 9]).to(dtype), torch.tensor([3, 2], dtype=torch.int32)
    assert prm.best_of_n(values, sizes).tolist() == [1, 1]
    assert prm.top_k(values, sizes, 2).tolist() == [[1, 2], [1, 0]]


def test_values_in_a_graph():
    assert prm.best_of_n(floats((4,)).requires_grad_(), torch.tensor([4])).tolist() == [floats((4,)).argmax().item()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_saturated_steps_do_not_tie(backend, dtype):
    # Every probability rounds to 1; the third response has the largest gaps.
    logits = torch.tensor([[0.0, z] for z in (20.0, 21.0, 20.5, 20.5, 21.0, 22.0)]).to(dtype)
    scores = prm.score_steps(logits, torch.tensor([0, 2, 4, 6]))
    assert (scores.min == 1).all()
    assert prm.best_of_n(scores.min, torch.tensor([3])).item() == 0  # the tie that goes by position
    best = prm.best_of_n_by_strategy(scores, torch.tensor([3]))
    assert list(best) == list(prm.STRATEGIES)
    assert all(index.item() == 2 for name, index in best.items() if name != "mean")


def test_long_products_do_not_underflow_into_a_tie(backend):
    logits = torch.tensor([-6.0] * 50 + [-5.9] * 50)
    scores = prm.score_steps(logits, torch.tensor([0, 50, 100]))
    assert (scores.product == 0).all()
    assert prm.best_of_n_by_strategy(scores, torch.tensor([2]))["product"].item() == 1


def test_an_empty_response_is_chosen_last_under_every_strategy(backend):
    scores = prm.score_steps(torch.tensor([-3.0, -4.0]), torch.tensor([0, 0, 2]))
    assert all(best.item() == 1 for best in prm.best_of_n_by_strategy(scores, torch.tensor([2])).values())


def test_given_probabilities_are_compared_themselves(backend):
    # Neighbours in float32 whose margins are one number.
    low = torch.tensor(0.0123, dtype=torch.float32)
    probs = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))])
    scores = prm.score_probs(probs, torch.tensor([0, 1, 2]))
    for name in ("min", "max", "last"):
        assert prm.best_of_n_by_strategy(scores, torch.tensor([2]), probabilities=True)[name].item() == 1


V, G = floats((6,)), torch.tensor([2, 4])
BAD = [
    ("values", TypeError, lambda: prm.best_of_n(V.to(torch.complex64), G)),
    ("values", ValueError, lambda: prm.best_of_n(V[0], G)),
    ("group_sizes", TypeError, lambda: prm.best_of_n(V, G.float())),
    ("group_sizes", ValueError, lambda: prm.best_of_n(V, G[:, None])),
    ("group_sizes", ValueError, lambda: prm.best_of_n(V, torch.tensor([2, 3]))),
    ("group_sizes", ValueError, lambda: prm.best_of_n(V, torch.tensor([8, -2]))),
    ("group_sizes", ValueError, lambda: prm.top_k(V, torch.tensor([7]), 2)),
    ("k", ValueError, lambda: prm.top_k(V, G, 0)),
    ("answers", TypeError, lambda: prm.weighted_majority(V, None, G)),
    ("answers", TypeError, lambda: prm.weighted_majority(V.to(torch.complex64), None, G)),
    ("answers", ValueError, lambda: prm.weighted_majority(V.long()[None], None, G)),
    ("weights", ValueError, lambda: prm.weighted_majority(V.long(), V[1:], G)),
    ("weights", ValueError, lambda: prm.weighted_majority(V.long(), V.to("meta"), G)),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, call):
    with pytest.raises(error, match=name):
        call()
