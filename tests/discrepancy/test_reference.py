"""The law itself: its derivatives, and the properties that the paper's formula has."""

import pytest
import torch
from discrepancy_rows import DTYPES, EACH, SMOOTHED, assert_right, large, small

from ladderkern.discrepancy import reference
from ladderkern.testing import floats

OPTIONS = {"image_start": 4}


def inputs(plain, metric, storage, **options):
    case = plain.make_case(T=9, V=30, N=20, metric=metric, storage=storage, dtype=torch.float64, **options)
    return case, {**case.table.options, **OPTIONS}


def test_gradients_by_autograd_are_right(plain, metric, storage):
    case, options = inputs(plain, metric, storage)
    case.logits.requires_grad_()

    def losses(logits):
        return reference.token_discrepancy(logits, case.labels, case.table.data, **options)[0]

    assert torch.autograd.gradcheck(losses, case.logits)


def test_the_closed_form_is_what_autograd_gives(plain, metric, storage):
    case, options = inputs(plain, metric, storage)
    x, grad = case.logits.requires_grad_(), floats((9,), torch.float64, seed=5)
    rows = reference.token_discrepancy(x, case.labels, case.table.data, **options)
    (expected,) = torch.autograd.grad(rows[0], x, grad)
    saved = [t.detach() for t in rows]
    actual = reference.token_discrepancy_backward(grad, x.detach(), case.labels, case.table.data, *saved, **options)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_joint_closed_form_is_what_autograd_gives(plain, metric, smoothing):
    case, options = inputs(plain, metric, "table")
    options |= {"ignore_index": -100, "label_smoothing": smoothing}
    x, grads = case.logits.requires_grad_(), floats((2, 9), torch.float64, seed=5)
    ce, *rows = reference.cross_entropy_discrepancy(x, case.labels, case.table.data, **options)
    (expected,) = torch.autograd.grad((ce, rows[0]), x, tuple(grads))
    saved = [t.detach() for t in rows]
    actual = reference.cross_entropy_discrepancy_backward(*grads, x.detach(), case.labels, case.table.data, *saved, **options)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ce, plain.eager_joint(x, case.labels, case.D, 4, smoothing=smoothing)[0])


def test_the_squared_distance_is_bias_and_variance_of_the_mean_embedding(plain):
    # facts 4.1: sum_j p_j |e_y - e_j|^2 = |e_y - mu|^2 + sum_j p_j |e_j - mu|^2
    case, options = inputs(plain, "sqeuclidean", "codebook")
    e = case.table.data.double()
    loss = reference.token_discrepancy(case.logits, case.labels, case.table.data, **options)[0]
    for t, y in enumerate(case.labels.tolist()):
        if 4 <= y < 24:
            p = torch.softmax(case.logits[t, 4:24], dim=0)
            mean = p @ e
            expected = (e[y - 4] - mean).square().sum() + (p * (e - mean).square().sum(dim=1)).sum()
            torch.testing.assert_close(loss[t], expected)


@EACH
@DTYPES
@pytest.mark.parametrize("common", [0.0, 1e4])
def test_ops_return_what_their_contract_says(dtype, joint, common):
    call = large(dtype, 61, 4, 25, joint, common=common)
    assert_right(call, "reference")
    call.logits[0, 30] = float("nan")
    call.logits[1, 4:65] = -float("inf")
    call.logits[-2, 7] = float("inf")
    call.logits[3] = -float("inf")
    assert_right(call, "reference")


@pytest.mark.parametrize("label", [-1, 150, 2**40])
def test_a_label_outside_the_vocabulary_makes_its_row_nan(label):
    call = small(**SMOOTHED)
    call.labels[2] = label
    assert assert_right(call, "reference")["gradient"][2].isnan().all()
