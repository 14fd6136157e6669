"""The losses' ops on rows of any number, width, dtype and place: the bits of contiguous logits, no write, near the truth."""

import torch
from discrepancy_rows import SMOOTHED, UNSMOOTHED, assert_right, distance_table, made, run
from hypothesis import given
from hypothesis import strategies as st
from properties import FLOATS, dtypes, placed, places, properties, seeds

import ladderkern
from ladderkern.testing import floats, guarded, laid_out


@st.composite
def calls(draw):
    """A call of any shape, with labels of every kind."""
    joint = draw(st.sampled_from([{}, SMOOTHED, UNSMOOTHED]))
    codes = draw(st.one_of(st.integers(1, 70), st.sampled_from([128, 257, 513, 1025])))
    start, after = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    storage = draw(st.sampled_from(["table", "codebook"]))
    metric = draw(st.sampled_from(["mse", "sqeuclidean", "euclidean"]))
    table = distance_table(codes, metric, storage, draw(st.sampled_from(FLOATS)), dim=draw(st.integers(1, 6)))
    rows = draw(st.integers(0, 24))
    generator = torch.Generator().manual_seed(draw(seeds))
    labels = torch.randint(0, start + codes + after, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.2] = -100
    scale, common = draw(st.sampled_from([(1.0, 0.0), (3.0, 0.0), (10.0, 40.0)]))
    return made(labels, start + codes + after, start, draw(dtypes), table.data, table.options, joint, scale, common)


@properties
@given(calls(), st.integers(0, 31), st.booleans(), seeds)
def test_any_rows(native, call, offset, spaced, seed):
    # Of few numbers eager may be right by luck, and the budget with it.
    expected = assert_right(call) if call.logits.numel() >= 2048 else run(call)
    box = guarded(laid_out(call.logits, "column_slice" if spaced else "contiguous", offset))
    order = torch.randperm(len(call.labels), generator=torch.Generator().manual_seed(seed))
    actual, shuffled = run(call.other(logits=box.tensor)), run(call.rows(order))
    box.assert_untouched("logits")
    for name, value in expected.items():
        same(actual[name], value, f"{name} depends on strides or start")
        same(shuffled[name], value[order], f"{name} of a row depends on the others")


@properties
@given(st.data(), st.lists(st.integers(0, 5), min_size=1, max_size=2), st.integers(0, 1), dtypes, seeds)
def test_any_positions(native, data, leading, shift, dtype, seed):
    table = distance_table(20)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 30, tuple(leading), generator=generator)
    logits = floats((*leading, 30), dtype, seed=seed)
    box = placed(logits, data.draw(places(logits.dim()), "logits"))
    strided = laid_out(labels, data.draw(places(labels.dim()), "labels")[0])
    results = []
    for x, y in ((logits.requires_grad_(), labels), (box.tensor.requires_grad_(), strided)):
        loss = ladderkern.cross_entropy_with_discrepancy(x, y, table, shift=shift, reduction="none")
        loss = loss.sum() + ladderkern.token_discrepancy_loss(x, y, table, shift=shift)
        results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    box.assert_untouched("logits")
    for name, one, other in zip(("loss", "gradient"), *results, strict=True):
        same(one, other, f"{name} depends on strides or start")


def same(actual, expected, what):
    assert torch.equal(actual.isnan(), expected.isnan()), what
    assert torch.equal(actual.nan_to_num(0.0), expected.nan_to_num(0.0)), what
