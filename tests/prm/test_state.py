"""StepState: a response that grows scores as one that is scored whole."""

import math

import pytest
import torch

from ladderkern import prm
from ladderkern.testing import floats

PER_STEP = ("margin", "prob", "log_prob")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
# (name, shape of one step of R responses, options)
KINDS = {
    "two classes": (2, {}),
    "class 0, strict": (2, {"positive": 0, "strict": True, "threshold": 0.3}),
    "scalar": (None, {"threshold": 0.8}),
    "weights": (3, {"class_weights": (0.0, 1.0, 1.0)}),
    "probabilities": (None, {"probabilities": True, "threshold": 0.6}),
}


def steps_of(kind, R, length, dtype, seed=0):
    """Scores of every step, [length, R, ...], with ties within a response."""
    columns, options = KINDS[kind]
    steps = (3 * floats((length, R) if columns is None else (length, R, columns), torch.float64, seed=seed)).round(decimals=1)
    return (steps.sigmoid() if options.get("probabilities") else steps).to(dtype)


def whole(steps, lengths, options):
    """Responses of the first ``lengths`` of their steps, scored at once."""
    options = dict(options)
    score = prm.score_probs if options.pop("probabilities", False) else prm.score_steps
    packed = torch.cat([steps[:n, r] for r, n in enumerate(lengths)])
    return score(packed, torch.tensor([0, *lengths]).cumsum(0), **options)


def assert_same(actual, expected):
    """Every field of a response is the same, bit for bit."""
    for name in prm.StepScores._fields:
        if name not in PER_STEP:
            a, e = getattr(actual, name), getattr(expected, name)
            assert a.dtype == e.dtype, name
            assert torch.equal(a.nan_to_num(12345.0), e.nan_to_num(12345.0)), f"{name}: {a} {e}"


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
def test_appending_equals_scoring_the_whole_response(backend, kind, dtype):
    steps, options = steps_of(kind, 13, 9, dtype), KINDS[kind][1]
    state = prm.StepState.empty(13, dtype=dtype, **options)
    assert_same(state.scores(), whole(steps, [0] * 13, options))
    for n, step in enumerate(steps, start=1):
        state = state.append(step)
        assert_same(state.scores(), whole(steps, [n] * 13, options))


@DTYPES
def test_a_thousand_steps_appended_are_still_exact(backend, dtype):
    steps = steps_of("scalar", 2, 1000, dtype)
    state = prm.StepState.empty(2, dtype=dtype, threshold=0.001)
    for step in steps:
        state = state.append(step)
    assert_same(state.scores(), whole(steps, [1000] * 2, {"threshold": 0.001}))


@pytest.mark.parametrize("kind", KINDS)
def test_responses_that_have_ended_stay_whatever_their_scores_hold(backend, kind):
    steps, options = steps_of(kind, 6, 8, torch.float32), KINDS[kind][1]
    lengths = [3, 0, 8, 5, 1, 8]
    state = prm.StepState.empty(6, **options)
    for n, step in enumerate(steps):
        grows = torch.tensor([n < length for length in lengths])
        step[~grows] = math.nan
        state = state.append(step, where=grows)
    assert_same(state.scores(), whole(steps, lengths, options))


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_scored_text(backend, kind):
    steps, options = steps_of(kind, 5, 7, torch.float32), KINDS[kind][1]
    lengths = [3, 0, 1, 2, 3]
    packed = torch.cat([steps[:n, r] for r, n in enumerate(lengths)])
    state = prm.StepState.of_steps(packed, torch.tensor([0, *lengths]).cumsum(0), **options)
    assert_same(state.scores(), whole(steps, lengths, options))
    state = state.append(steps[6])
    tail = [torch.cat([steps[:n, r], steps[6:, r]]) for r, n in enumerate(lengths)]
    score = prm.score_probs if options.get("probabilities") else prm.score_steps
    options = {name: value for name, value in options.items() if name != "probabilities"}
    expected = score(torch.cat(tail), torch.tensor([0, *(n + 1 for n in lengths)]).cumsum(0), **options)
    assert_same(state.scores(), expected)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_merging_two_halves(backend, cut):
    steps = steps_of("two classes", 11, 9, torch.float32)
    halves = []
    for part in (steps[:cut], steps[cut:]):
        offsets = torch.arange(12) * len(part)
        halves.append(prm.StepState.of_steps(part.transpose(0, 1).reshape(-1, 2), offsets))
    merged, expected = halves[0].merge(halves[1]).scores(), whole(steps, [9] * 11, {})
    for name in ("count", "argmin", "argmax", "first_error", "min", "max", "last", "min_margin", "max_margin", "last_margin"):
        assert torch.equal(getattr(merged, name), getattr(expected, name)), name
    torch.testing.assert_close(merged.log_product, expected.log_product)  # sums in another order
    torch.testing.assert_close(merged.mean_margin, expected.mean_margin)


def test_a_beam_search_keeps_the_best_and_their_history(backend):
    steps = steps_of("two classes", 12, 4, torch.float32)
    sizes = torch.full((3,), 4)
    state = prm.StepState.empty(3).select(torch.arange(3).repeat_interleave(4))
    history = torch.zeros(12, 0, 2)
    for step in steps:
        state = state.append(step)
        history = torch.cat([history, step[:, None]], dim=1)
        kept = prm.top_k(prm.ranking(state.scores())[0], sizes, 2)
        rows = (kept + 4 * torch.arange(3)[:, None]).flatten().repeat_interleave(2)
        state, history = state.select(rows), history[rows]
    offsets = torch.arange(13) * 4
    assert_same(state.scores(), prm.score_steps(history.reshape(-1, 2), offsets))


def test_states_are_not_changed_and_carry_no_graph():
    empty = prm.StepState.empty(2)
    logits = floats((2, 2)).requires_grad_()
    state = empty.append(logits)
    after = state.scores()
    state.append(logits)
    state.select(torch.tensor([1, 0]))
    assert_same(state.scores(), after)
    assert empty.scores().count.tolist() == [0, 0]
    assert not state.scores().log_product.requires_grad


def test_a_nan_that_may_not_be_looked_for_stays_in_its_response(backend, monkeypatch):
    monkeypatch.setattr("ladderkern.prm.ops.values_readable", lambda tensor: False)
    z = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [math.nan, 3.0], [-5.0, -1.0]])
    state = prm.StepState.empty(2)
    for step in z:
        state = state.append(step)
    assert_same(state.scores(), prm.score_steps(z.T.reshape(-1), torch.tensor([0, 4, 8])))
    scores = state.scores()
    assert (scores.argmin.tolist(), scores.argmax.tolist(), scores.first_error.tolist()) == ([1, 3], [1, 2], [1, 3])
    assert scores.min.isnan().tolist() == scores.log_product.isnan().tolist() == [True, False]


def test_scores_of_a_state_serve_the_selection(backend):
    steps = steps_of("two classes", 6, 5, torch.float32)
    state = prm.StepState.empty(6)
    for step in steps:
        state = state.append(step)
    sizes, scores = torch.tensor([2, 4]), whole(steps, [5] * 6, {})
    assert torch.equal(prm.ranking(state.scores()), prm.ranking(scores))
    by_strategy = prm.best_of_n_by_strategy(state.scores(), sizes)
    assert all(torch.equal(best, prm.best_of_n_by_strategy(scores, sizes)[name]) for name, best in by_strategy.items())


STATE = prm.StepState.empty(3)
BAD = [
    ("scores", ValueError, lambda: STATE.append(torch.zeros(2, 2))),
    ("scores", ValueError, lambda: STATE.append(torch.tensor(1.0))),
    ("where", ValueError, lambda: STATE.append(torch.zeros(3, 2), where=torch.ones(2, dtype=torch.bool))),
    ("where", ValueError, lambda: STATE.append(torch.zeros(3, 2), where=torch.ones(3))),
    ("logits", ValueError, lambda: STATE.append(torch.full((3, 2), math.nan))),
    ("prob", ValueError, lambda: prm.StepState.empty(3, probabilities=True).append(torch.full((3,), 1.5))),
    ("threshold", ValueError, lambda: prm.StepState.empty(3, threshold=2.0).append(torch.zeros(3, 2))),
    ("positive", ValueError, lambda: prm.StepState.empty(3, positive=2).append(torch.zeros(3, 2))),
    ("other", ValueError, lambda: STATE.merge(prm.StepState.empty(2))),
    ("other", ValueError, lambda: STATE.merge(prm.StepState.empty(3, threshold=0.6))),
    ("other", ValueError, lambda: STATE.merge(prm.StepState.empty(3, probabilities=True))),
    ("offsets", ValueError, lambda: prm.StepState.of_steps(torch.zeros(3, 2), torch.tensor([0, 2]))),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, call):
    with pytest.raises(error, match=name):
        call()
