"""The law itself: its derivatives, and the properties that the paper's formula has."""

import pytest
import torch

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
    loss, lse = reference.token_discrepancy(x, case.labels, case.table.data, **options)
    (expected,) = torch.autograd.grad(loss, x, grad)
    actual = reference.token_discrepancy_backward(
        grad, x.detach(), case.labels, case.table.data, loss.detach(), lse.detach(), **options
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_joint_closed_form_is_what_autograd_gives(plain, metric, smoothing):
    case, options = inputs(plain, metric, "table")
    options |= {"ignore_index": -100, "label_smoothing": smoothing}
    x, grads = case.logits.requires_grad_(), floats((2, 9), torch.float64, seed=5)
    ce, discrepancy, lse, image_lse = reference.cross_entropy_discrepancy(x, case.labels, case.table.data, **options)
    (expected,) = torch.autograd.grad((ce, discrepancy), x, tuple(grads))
    saved = [t.detach() for t in (discrepancy, lse, image_lse)]
    actual = reference.cross_entropy_discrepancy_backward(*grads, x.detach(), case.labels, case.table.data, *saved, **options)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(ce, plain.eager_joint(x, case.labels, case.D, 4, smoothing=smoothing)[0])


def test_the_squared_distance_is_bias_and_variance_of_the_mean_embedding(plain):
    # facts 4.1: sum_j p_j |e_y - e_j|^2 = |e_y - mu|^2 + sum_j p_j |e_j - mu|^2
    case, options = inputs(plain, "sqeuclidean", "codebook")
    e = case.table.data.double()
    loss, _ = reference.token_discrepancy(case.logits, case.labels, case.table.data, **options)
    for t, y in enumerate(case.labels.tolist()):
        if 4 <= y < 24:
            p = torch.softmax(case.logits[t, 4:24], dim=0)
            mean = p @ e
            expected = (e[y - 4] - mean).square().sum() + (p * (e - mean).square().sum(dim=1)).sum()
            torch.testing.assert_close(loss[t], expected)
