"""The law itself: its derivatives, and the formulas of the papers."""

import pytest
import torch

from ladderkern.prm import reference
from ladderkern.testing import floats

FINITE = (3, 1, 4)  # gradcheck needs responses without NaN


def two_outputs(case, scores):
    return reference.prm_scores(scores, *case.inputs[1:], **case.options)[:2]


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
def test_gradients_by_autograd_are_right(plain, kind, masked):
    case = plain.make_case(FINITE, dtype=torch.float64, masked=masked, scale=1.0, **kind)

    def outputs(scores):
        steps, responses = two_outputs(case, scores)
        return (steps if case.mask is None else torch.where(case.mask, steps, 0.0)), responses

    assert torch.autograd.gradcheck(outputs, case.scores.nan_to_num(0.5).requires_grad_())


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
def test_the_closed_form_is_what_autograd_gives(plain, kind, masked):
    case = plain.make_case(FINITE, dtype=torch.float64, masked=masked, **kind)
    x = case.scores.requires_grad_()
    outputs = reference.prm_scores(*case.inputs, **case.options)
    grads = [floats(t.shape, torch.float64, seed=5) for t in outputs[:2]]
    (expected,) = torch.autograd.grad(outputs[:2], x, grads)
    saved = [t.detach() for t in outputs[:3]]
    actual = reference.prm_scores_backward(*grads, x.detach(), *case.inputs[1:], *saved, **case.options)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
def test_the_op_passes_gradcheck(plain, backend, kind, masked):
    case = plain.make_case(FINITE, dtype=torch.float64, masked=masked, scale=1.0, **kind)

    def outputs(scores):
        steps, responses = case.score(scores)[:2]
        return (steps if case.mask is None else torch.where(case.mask, steps, 0.0)), responses

    assert torch.autograd.gradcheck(outputs, case.scores.nan_to_num(0.5).requires_grad_())


def test_the_margin_is_the_log_odds_of_the_weighted_softmax(plain):
    case = plain.make_case(C=4, weights=(0.0, 0.3, 0.9, 1.0), dtype=torch.float64)
    margin, prob, log_prob = reference.prm_scores(*case.inputs, **case.options)[0]
    p = (torch.softmax(case.scores, dim=1) * case.weights).sum(dim=1)
    for actual, expected in ((prob, p), (log_prob, p.log()), (margin, torch.logit(p))):
        torch.testing.assert_close(actual, expected)


def test_one_hot_weights_are_the_positive_class(plain):
    case = plain.make_case(C=3, positive=1, dtype=torch.float64)
    expected = reference.prm_scores(*case.inputs, **case.options)
    weights = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    actual = reference.prm_scores(case.scores, case.offsets, None, weights, **{**case.options, "positive": 0})
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_the_threshold_in_log_odds():
    assert reference.logit(0.5) == 0.0
    assert [reference.logit(p) for p in (0.0, 1.0)] == [-float("inf"), float("inf")]
    p = torch.tensor([1e-12, 0.1, 0.7, 1 - 1e-12], dtype=torch.float64)
    expected = torch.logit(p)
    torch.testing.assert_close(torch.tensor([reference.logit(v) for v in p.tolist()], dtype=torch.float64), expected)


def test_the_order_in_which_responses_come_does_not_matter(plain, kind):
    case = plain.make_case(dtype=torch.float64, **kind)
    expected = reference.prm_scores(*case.inputs, **case.options)
    order = torch.randperm(len(plain.LENGTHS), generator=torch.Generator().manual_seed(1))
    parts = case.scores.split(plain.LENGTHS)
    offsets = torch.tensor([0, *(len(parts[i]) for i in order)]).cumsum(0)
    scores = torch.cat([parts[i] for i in order])
    actual = reference.prm_scores(scores, offsets, None, case.weights, **case.options)
    torch.testing.assert_close(actual[1], expected[1][:, order], equal_nan=True)
    assert torch.equal(actual[2], expected[2][:, order])
