"""add_rms_norm of any shape, dtypes and layouts: the bits of contiguous rows, no write outside, and near the truth."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import dtypes, placed, places, properties, seeds

from ladderkern.testing import assert_within_budget

sizes = st.integers(0, 5)
hidden_sizes = st.one_of(st.integers(1, 70), st.sampled_from([128, 200, 256, 1024, 2000]))


def leaves_of(inputs, places_of):
    """The inputs at their places, requiring gradients, and their guard bands."""
    boxes = {name: placed(t, places_of[name]) for name, t in inputs.items()}
    return boxes, {name: box.tensor.requires_grad_() for name, box in boxes.items()}


@properties
@given(st.data(), st.lists(sizes, min_size=1, max_size=3), hidden_sizes, dtypes, dtypes, seeds)
def test_any_rows(native, plain, data, leading, hidden, dtype, weight_dtype, seed):
    if weight_dtype == torch.float64:
        dtype = torch.float64
    updates, weights = data.draw(st.integers(0, 2), "updates"), data.draw(st.integers(1, 2), "weights")
    convention = data.draw(st.sampled_from(["rounded", "float32"]), "convention")
    case = plain.make_case((*leading, hidden), dtype, weight_dtype, updates=updates, weights=weights, seed=seed)
    where = {name: data.draw(places(t.dim()), name) for name, t in case.inputs.items()}
    grads = {name: placed(t, data.draw(places(t.dim()), f"gradient of {name}")).tensor for name, t in case.grads.items()}

    boxes, leaves = leaves_of(case.inputs, where)
    actual = plain.results(plain.fused, leaves, grads, convention=convention)
    for name, box in boxes.items():
        box.assert_untouched(name)
    same = plain.results(plain.fused, case.leaves(), case.grads, convention=convention)
    eager = plain.results(plain.eager, case.leaves(), case.grads)
    exact = plain.results(plain.exact, case.leaves(torch.float64), case.grads)
    for name, value in actual.items():
        assert torch.equal(value, same[name]), f"{name} depends on strides or start"
        if value.numel() >= 1024:  # of few elements eager may be right by luck, and the budget with it
            assert_within_budget(value, eager[name], exact[name], name)
