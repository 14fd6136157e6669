"""cross_entropy_with_discrepancy: both terms, their means and their one gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

import ladderkern
from ladderkern.testing import assert_within_budget, floats

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)


def loss_of(case, logits=None, labels=None, **options):
    logits = case.logits if logits is None else logits
    labels = case.labels if labels is None else labels
    return ladderkern.cross_entropy_with_discrepancy(logits, labels, case.table, image_start=case.start, **options)


def assert_right(plain, case, smoothing=0.0, ignore_index=-100, weight=0.7):
    x, T = case.logits.clone().requires_grad_(), len(case.labels)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad = floats((T,), wide, seed=9)
    parts = loss_of(
        case, x, reduction="none", weight=weight, label_smoothing=smoothing, ignore_index=ignore_index, return_parts=True
    )
    (gradient,) = torch.autograd.grad(parts.loss, x, grad)
    e = case.logits.clone().requires_grad_()
    ce, discrepancy = plain.eager_joint(e, case.labels, case.D, case.start, ignore_index, smoothing)
    total = ce + weight * discrepancy
    (plain_gradient,) = torch.autograd.grad(total, e, grad)
    how = {"ignore_index": ignore_index, "smoothing": smoothing, "grad_ce": grad}
    expected, expected_ce, expected_gradient = plain.oracle(x, case.labels, case.D, case.start, weight * grad.double(), **how)
    assert_within_budget(parts.cross_entropy, ce.detach(), expected_ce, "cross_entropy")
    assert_within_budget(parts.discrepancy, discrepancy.detach(), expected, "discrepancy")
    assert_within_budget(parts.loss.detach(), total.detach(), expected_ce + weight * expected, "loss")
    assert_within_budget(gradient, plain_gradient, expected_gradient, "gradient")
    assert not parts.cross_entropy.requires_grad
    assert not parts.discrepancy.requires_grad
    ignored = case.labels == ignore_index
    assert (parts.cross_entropy[ignored] == 0).all()
    assert torch.equal(x.detach(), case.logits)


@DTYPES
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_both_terms_and_their_gradient(plain, backend, dtype, storage, smoothing):
    assert_right(plain, plain.make_case(dtype=dtype, storage=storage), smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_metrics(plain, backend, metric, smoothing):
    assert_right(plain, plain.make_case(metric=metric), smoothing)


@pytest.mark.parametrize(
    "size",
    [{"T": 1, "N": 1, "V": 1, "start": 0}, {"T": 7, "N": 63, "V": 70}, {"T": 3, "N": 1000, "V": 3000, "start": 8}],
    ids=str,
)
def test_odd_sizes(plain, backend, size):
    assert_right(plain, plain.make_case(**size), 0.1)


@DTYPES
@pytest.mark.parametrize("offset", [1, 4, 31])
def test_rows_far_apart_at_any_offset(plain, backend, dtype, offset):
    assert_right(plain, plain.make_case(dtype=dtype, offset=offset, gap=13))


@pytest.mark.parametrize("ignore_index", [0, 20, 88])
def test_an_ignored_label_inside_the_vocabulary(plain, backend, ignore_index):
    case = plain.make_case()
    case.labels[case.labels == -100] = ignore_index
    assert_right(plain, case, ignore_index=ignore_index)


def test_masked_columns(plain, backend):
    case = plain.make_case()
    case.logits[:, 70:] = -math.inf
    case.logits[:, 10:20] = -math.inf
    case.labels[(case.labels >= 70) | ((case.labels >= 10) & (case.labels < 20))] = -100
    assert_right(plain, case)


def test_means_have_their_own_counts(plain, backend):
    case = plain.make_case()
    rows = loss_of(case, reduction="none", return_parts=True)
    image = ((case.labels >= 4) & (case.labels < 65)).sum()
    parts = loss_of(case, weight=2.0, return_parts=True)
    torch.testing.assert_close(parts.cross_entropy, F.cross_entropy(case.logits, case.labels))
    torch.testing.assert_close(parts.discrepancy, rows.discrepancy.sum() / image)
    torch.testing.assert_close(parts.loss, parts.cross_entropy + 2.0 * parts.discrepancy)
    torch.testing.assert_close(loss_of(case, reduction="sum"), rows.loss.sum())
    given = loss_of(case, ce_normalizer=5, normalizer=torch.tensor(3), return_parts=True)
    torch.testing.assert_close(given.cross_entropy, rows.cross_entropy.sum() / 5)
    torch.testing.assert_close(given.discrepancy, rows.discrepancy.sum() / 3)
    assert isinstance(loss_of(case), torch.Tensor)


def test_the_discrepancy_is_that_of_the_loss_alone(plain, backend):
    case = plain.make_case()
    alone = ladderkern.token_discrepancy_loss(case.logits, case.labels, case.table, image_start=4)
    torch.testing.assert_close(loss_of(case, return_parts=True).discrepancy, alone)


@pytest.mark.parametrize("normalizers", [{}, {"ce_normalizer": 0, "normalizer": torch.tensor(0)}], ids=str)
def test_all_rows_ignored_gives_zero_with_a_graph(plain, backend, normalizers):
    case = plain.make_case()
    x = case.logits.requires_grad_()
    loss = loss_of(case, labels=torch.full((23,), -100), **normalizers)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_a_text_batch_trains_on_cross_entropy_alone(plain, backend):
    case = plain.make_case()
    x = case.logits.requires_grad_()
    labels = torch.arange(23) + 65
    loss = loss_of(case, labels=labels)
    expected = F.cross_entropy(x, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], torch.autograd.grad(expected, x)[0], atol=1e-7, rtol=1e-5)


def test_ignored_rows_may_hold_anything(plain, backend):
    case = plain.make_case()
    ignored = case.labels == -100
    case.logits[ignored] = math.nan
    x = case.logits.requires_grad_()
    loss = loss_of(case, label_smoothing=0.1)
    loss.backward()
    assert loss.isfinite()
    assert (x.grad[ignored] == 0).all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("label", [-1, 90, 10**12, -(2**63)])
def test_a_label_outside_the_vocabulary_is_an_index_error(plain, backend, label):
    case = plain.make_case()
    case.labels[3] = label
    with pytest.raises(IndexError, match=rf"labels must be in \[0, 90\).* got {label}"):
        loss_of(case)


@pytest.mark.parametrize("length", [0, 1, 12])
@pytest.mark.parametrize("ignore_index", [-100, 20])
def test_shift(plain, backend, length, ignore_index):
    case = plain.make_case(T=24)
    case.labels[case.labels == -100] = ignore_index
    x = case.logits.view(2, 12, 90)[:, :length].requires_grad_()
    labels = case.labels.view(2, 12)[:, :length]
    options = {"ignore_index": ignore_index, "label_smoothing": 0.1}
    for reduction in ("none", "sum", "mean"):
        shifted = loss_of(case, x, labels, shift=1, reduction=reduction, **options)
        expected = loss_of(case, x[:, :-1], labels[:, 1:], reduction=reduction, **options)
        torch.testing.assert_close(shifted, expected)
        grads = [torch.autograd.grad(loss.sum(), x)[0] for loss in (shifted, expected)]
        torch.testing.assert_close(*grads)


BAD = [
    ("table", TypeError, {"table": None}),
    ("reduction", ValueError, {"reduction": "avg"}),
    ("label_smoothing", ValueError, {"label_smoothing": 1.5}),
    ("ce_normalizer", ValueError, {"ce_normalizer": 3, "reduction": "none"}),
    ("image_start", ValueError, {"image_start": 40}),
]


@pytest.mark.parametrize(("name", "error", "changes"), BAD, ids=[bad[0] for bad in BAD])
def test_unfit_arguments_are_named(plain, backend, name, error, changes):
    case = plain.make_case()
    arguments = {"logits": case.logits, "labels": case.labels, "table": case.table, **changes}
    with pytest.raises(error, match=name):
        ladderkern.cross_entropy_with_discrepancy(**arguments)
