"""Scores of any packing, dtype and place: the bits of contiguous logits, no write outside, near the truth."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import dtypes, placed, places, properties, seeds

from ladderkern.prm import ops
from ladderkern.testing import assert_within_budget


@st.composite
def cases(draw, kinds, make_case):
    """A case of any packing, with gradients of its results."""
    lengths = draw(st.lists(st.one_of(st.integers(0, 6), st.integers(0, 70)), max_size=9))
    options = {"threshold": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])), "strict": draw(st.booleans()), "seed": draw(seeds)}
    masked = bool(lengths) and draw(st.booleans())  # rows that are no steps need a response to lie in
    return make_case(lengths, **kinds, dtype=draw(dtypes), masked=masked, **options)


def outputs_and_gradient(case, scores):
    leaf = scores.detach().requires_grad_()
    outputs = case.score(leaf)
    weights = torch.linspace(0.5, 1.5, 11, dtype=outputs[1].dtype)[:, None]
    loss = (outputs[1].nan_to_num(0.0) * weights).sum() + outputs[0].nan_to_num(0.0).sum()
    return (*(t.detach() for t in outputs), *torch.autograd.grad(loss, leaf))


@properties
@given(st.data())
def test_any_packing(native, plain, kind, data):
    case = data.draw(cases(kind, plain.make_case), "case")
    box = placed(case.scores, data.draw(places(2), "place"))
    expected, actual = (outputs_and_gradient(case, scores) for scores in (case.scores, box.tensor))
    box.assert_untouched("scores")
    for name, one, other in zip(("steps", "responses", "indices", "min_is_last", "gradient"), actual, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan()), name
        assert torch.equal(one.nan_to_num(0.0), other.nan_to_num(0.0)), f"{name} depends on strides or start"
    eager, exact = case.eager(expected[0].dtype), case.oracle()
    for i in (2, 3):
        assert torch.equal(actual[i], exact[i])
    if sum(exact[2][0]) >= 200:  # of few numbers eager may be right by luck, and the budget with it
        for name, *values in zip(ops.STEPS, actual[0], eager[0], exact[0], strict=True):
            assert_within_budget(*values, name)
    for r, (start, end) in enumerate(pairwise(case.offsets.tolist())):
        mask = None if case.mask is None else case.mask[start:end]
        bounds = torch.tensor([0, end - start])
        alone = ops.score("scores", case.scores[start:end], bounds, mask, case.weights, **case.options)
        for name, one, packed in zip(ops.RESPONSES, alone[1][:, 0], expected[1][:, r], strict=True):
            assert torch.equal(one, packed) or (one.isnan() and packed.isnan()), f"{name} depends on the other responses"
