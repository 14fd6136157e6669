"""token_discrepancy_loss: rows out of sequences, their means, and arguments that do not fit."""

import pytest
import torch

import ladderkern


def test_reductions(plain, backend):
    case = plain.make_case()
    losses = case.loss(reduction="none")
    count = ((case.labels >= 4) & (case.labels < 65)).sum()
    torch.testing.assert_close(case.loss(reduction="sum"), losses.sum())
    torch.testing.assert_close(case.loss(), losses.sum() / count)
    for normalizer in (7, 7.0, torch.tensor(7), torch.tensor(7.0, dtype=torch.float64)):
        loss = case.loss(normalizer=normalizer)
        torch.testing.assert_close(loss, losses.sum() / 7)
        assert loss.dtype == torch.float32


@pytest.mark.parametrize("normalizer", [None, 0, 5, torch.tensor(0), torch.tensor(5.0)], ids=str)
def test_no_image_token_gives_zero_with_a_graph(plain, backend, normalizer):
    case = plain.make_case()
    x = case.logits.requires_grad_()
    loss = case.loss(labels=torch.full((23,), -100), normalizer=normalizer)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_no_rows(plain, backend):
    case = plain.make_case(T=0)
    x = case.logits.requires_grad_()
    assert case.loss(reduction="none").shape == (0,)
    case.loss().backward()
    assert x.grad.shape == (0, 90)


def test_leading_dimensions(plain, backend):
    case = plain.make_case(T=24)
    flat = case.loss(reduction="none")
    shaped = case.loss(case.logits.view(2, 3, 4, 90), case.labels.view(2, 3, 4), reduction="none")
    assert torch.equal(shaped, flat.view(2, 3, 4))
    one = case.loss(case.logits[0], case.labels[0], reduction="none")
    assert one.shape == ()
    assert torch.equal(one, flat[0])
    columns_first = case.logits.t().contiguous().t()
    assert torch.equal(case.loss(columns_first, reduction="none"), flat)


@pytest.mark.parametrize("length", [0, 1, 2, 12])
def test_shift(plain, backend, length):
    case = plain.make_case(T=24)
    x = case.logits.view(2, 12, 90)[:, :length].requires_grad_()
    labels = case.labels.view(2, 12)[:, :length]
    for reduction in ("none", "sum", "mean"):
        shifted = case.loss(x, labels, shift=1, reduction=reduction)
        expected = case.loss(x[:, :-1], labels[:, 1:], reduction=reduction)
        torch.testing.assert_close(shifted, expected)
        grads = [torch.autograd.grad(loss.sum(), x)[0] for loss in (shifted, expected)]
        torch.testing.assert_close(*grads)


BAD = [
    ("table", TypeError, lambda c: {"table": c.D}),
    ("logits", TypeError, lambda c: {"logits": c.logits.long()}),
    ("logits", ValueError, lambda c: {"logits": torch.tensor(1.0)}),
    ("labels", TypeError, lambda c: {"labels": c.labels.float()}),
    ("labels", TypeError, lambda c: {"labels": c.labels > 3}),
    ("labels", ValueError, lambda c: {"labels": c.labels[1:]}),
    ("labels", ValueError, lambda c: {"labels": c.labels[:, None]}),
    ("image_start", ValueError, lambda c: {"image_start": 40}),
    ("image_start", ValueError, lambda c: {"image_start": -1}),
    ("reduction", ValueError, lambda c: {"reduction": "avg"}),
    ("shift", ValueError, lambda c: {"shift": 2}),
    ("shift", ValueError, lambda c: {"shift": 1, "logits": c.logits[0], "labels": c.labels[0]}),
    ("normalizer", ValueError, lambda c: {"normalizer": 3, "reduction": "sum"}),
    ("normalizer", ValueError, lambda c: {"normalizer": -3}),
    ("normalizer", ValueError, lambda c: {"normalizer": torch.ones(2)}),
]


@pytest.mark.parametrize(("name", "error", "spoil"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(plain, backend, name, error, spoil):
    case = plain.make_case()
    arguments = {"logits": case.logits, "labels": case.labels, "table": case.table, **spoil(case)}
    with pytest.raises(error, match=name):
        ladderkern.token_discrepancy_loss(**arguments)
