"""score_steps and score_probs: every gradient against plain PyTorch in float64."""

import math

import pytest
import torch

from ladderkern import prm
from ladderkern.prm import reference
from ladderkern.testing import assert_within_budget, floats, laid_out

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INF = math.inf


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
def test_the_gradient_of_each_field(plain, backend, kind, masked):
    case = plain.make_case(masked=masked, **kind)
    for name in plain.FIELDS:
        gradients = []
        for outputs, dtype in ((case.score, None), (case.eager, torch.float32), (case.eager, torch.float64)):
            x = case.scores.clone().requires_grad_()
            values = plain.field(outputs(scores=x) if dtype is None else outputs(dtype, scores=x), name)
            upstream = floats(values.shape, values.dtype, seed=9)
            kept = ~values.isnan()
            (values[kept] * upstream[kept]).sum().backward()
            gradients.append(x.grad)
        actual, eager, oracle = gradients
        if masked:
            assert not actual[~case.mask].any(), name
            actual, eager, oracle = (g[case.mask] for g in gradients)
        assert_within_budget(actual, eager, oracle, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_have_the_dtype_of_the_scores(plain, backend, kind, dtype):
    case = plain.make_case(dtype=dtype, **kind)
    gradients = []
    for outputs in (case.score, lambda x: case.eager(reference.wide(dtype), x), lambda x: case.eager(torch.float64, x)):
        x = case.scores.double() if len(gradients) == 2 else case.scores.clone()
        steps, responses = outputs(x.requires_grad_())[:2]
        (steps.sum() + responses.nansum()).backward()
        gradients.append(x.grad)
    assert gradients[0].dtype == dtype
    if dtype == torch.float64:  # whose oracle is no better than itself: what gradcheck leaves open is the dtype alone
        torch.testing.assert_close(*gradients[:2])
    else:
        assert_within_budget(*gradients)


GRADS = {
    "expanded": lambda g: g[..., :1].expand(g.shape),
    "transposed": lambda g: laid_out(g, "transposed"),
    "every_second": lambda g: laid_out(g, "every_second"),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("grad", list(GRADS))
def test_any_grad_output(plain, backend, kind, grad):
    case = plain.make_case((5, 1, 12, 33), **kind)
    gradients = []
    for contiguous in (False, True):
        x = case.scores.clone().requires_grad_()
        outputs = case.score(x)[:2]
        upstream = [GRADS[grad](floats(t.shape, seed=3)) for t in outputs]
        upstream = [g.contiguous() for g in upstream] if contiguous else upstream
        gradients += torch.autograd.grad(outputs, x, upstream)
    assert torch.equal(*gradients)
    assert gradients[0].any() == (grad != "zero")


def test_only_one_field_needs_a_gradient(backend):
    logits = floats((6, 2)).requires_grad_()
    prm.score_steps(logits, torch.tensor([0, 4, 6])).last_margin.sum().backward()
    expected = torch.zeros(6, 2)
    expected[3] = expected[5] = torch.tensor([-1.0, 1.0])
    assert torch.equal(logits.grad, expected)


@pytest.mark.parametrize("zeros", [(), (1,), (0, 2), (0, 1, 2, 3)])
def test_the_gradient_of_a_product_with_zeros(backend, zeros):
    prob = torch.tensor([0.5, 0.25, 1.0, 0.75, 0.5])
    prob[list(zeros)] = 0.0
    expected = prob.clone().requires_grad_()
    (2 * expected[:4].prod() + expected[4:].prod()).backward()
    prob.requires_grad_()
    s = prm.score_probs(prob, torch.tensor([0, 4, 5]))
    (s.product * torch.tensor([2.0, 1.0])).sum().backward()
    assert torch.equal(prob.grad, expected.grad)


def test_the_gradient_of_a_geometric_mean_with_zeros(backend):
    tiny = 1e-30  # whose square underflows
    prob = torch.tensor([0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0, tiny, tiny]).requires_grad_()
    prm.score_probs(prob, torch.tensor([0, 1, 3, 6, 7, 10])).geometric_mean.sum().backward()
    assert prob.grad.tolist() == [1.0, INF, 0.0, 0.0, 0.0, 0.0, 1.0, INF, 0.0, 0.0]


def test_what_is_0_upstream_adds_exactly_0(backend):
    # at p = 0 and 1 margin and log_prob have infinite slopes, and mean_margin of the two is NaN
    prob = torch.tensor([0.0, 1.0, 0.5]).requires_grad_()
    s = prm.score_probs(prob, torch.tensor([0, 3]))
    (s.mean + 0 * s.geometric_mean).sum().backward()
    torch.testing.assert_close(prob.grad, torch.full((3,), 1 / 3))
    prob.grad = None
    (s := prm.score_probs(prob, torch.tensor([0, 3]))).log_prob[2].backward()
    assert prob.grad.tolist() == [0.0, 0.0, 2.0]


def test_no_gradient_divides_by_a_probability(backend):
    logits = torch.tensor([-200.0, -INF, 3.0, 200.0]).requires_grad_()
    s = prm.score_steps(logits, torch.tensor([0, 1, 3, 4]))
    (s.product.sum() + s.geometric_mean.sum() + s.log_prob[[0, 2, 3]].sum()).backward()
    assert logits.grad.isfinite().all()
