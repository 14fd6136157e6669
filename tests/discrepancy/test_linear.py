"""linear_cross_entropy_with_discrepancy: the joint loss of an LM head whose logits never exist as a whole."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ladderkern
from ladderkern.discrepancy import linear
from ladderkern.runtime.library import NATIVE
from ladderkern.testing import assert_within_budget, floats

H = 24


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(linear, "chunk_rows", lambda rows: 5)


def operands(case, dtype=torch.float32, grad=(True, True)):
    hidden = floats((len(case.labels), H), dtype, seed=5).requires_grad_(grad[0])
    weight = floats((90, H), dtype, seed=6).mul_(0.3).requires_grad_(grad[1])
    return hidden, weight


def loss_of(case, hidden, head, labels=None, **options):
    labels = case.labels if labels is None else labels
    return ladderkern.linear_cross_entropy_with_discrepancy(hidden, head, labels, case.table, image_start=case.start, **options)


def whole(case, hidden, head, labels=None, **options):
    labels = case.labels if labels is None else labels
    return ladderkern.cross_entropy_with_discrepancy(hidden @ head.T, labels, case.table, image_start=case.start, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_equals_the_loss_of_the_whole_logits(plain, backend, dtype, reduction):
    case = plain.make_case()
    options = {"reduction": reduction, "weight": 0.7, "label_smoothing": 0.1}
    hidden, weight = operands(case, dtype)
    ours, eager = loss_of(case, hidden, weight, **options), whole(case, hidden, weight, **options)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    oracle = whole(case, *exact, **options)
    assert_within_budget(ours.detach(), eager.detach(), oracle.detach())
    grad = floats(ours.shape, ours.dtype, seed=7)
    expected = torch.autograd.grad(oracle, exact, grad.double())
    gradients = [torch.autograd.grad(loss, (hidden, weight), grad) for loss in (ours, eager)]
    for name, a, e, o in zip(("hidden", "weight"), *gradients, expected, strict=True):
        assert a.dtype == dtype
        assert_within_budget(a, e, o, name)


def test_gradcheck(plain):
    case = plain.make_case(T=11)
    hidden, weight = operands(case, torch.float64)

    def losses(hidden, weight):
        return loss_of(case, hidden, weight, reduction="none", label_smoothing=0.1)

    assert torch.autograd.gradcheck(losses, (hidden, weight), fast_mode=True)


@pytest.mark.parametrize("grad", [(True, False), (False, True), (False, False)], ids=str)
def test_what_is_frozen_gets_no_gradient(plain, backend, grad):
    case = plain.make_case()
    hidden, weight = operands(case, grad=grad)
    loss = loss_of(case, hidden, weight)
    assert loss.requires_grad == any(grad)
    if any(grad):
        loss.backward()
    for tensor, wanted in zip((hidden, weight), grad, strict=True):
        assert (tensor.grad is not None) == wanted


@pytest.mark.parametrize("grad", [(True, True), (True, False)], ids=str)
def test_no_tensor_is_as_large_as_the_logits(plain, backend, grad):
    case = plain.make_case(T=400)
    hidden, weight = operands(case, grad=grad)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                largest = max(largest, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out

    with Watch():
        loss_of(case, hidden, weight).backward()
    assert largest <= max(400 * H, 90 * H, 61 * 61)
    assert largest < 400 * 90 / 3


def test_chunks_keep_to_a_sixteenth_of_the_logits(monkeypatch):
    monkeypatch.undo()
    assert [linear.chunk_rows(T) for T in (0, 1, 1024, 4096, 10**4, 10**6)] == [128, 128, 128, 128, 313, 1024]


@pytest.mark.skipif(not NATIVE.loaded, reason="the reference is not written for little memory")
def test_peak_memory_is_an_eighth_of_the_logits():
    code = """
import resource, torch, ladderkern
torch.set_num_threads(1)
T, V, H = 4096, 16384, 32
hidden, weight = (torch.randn(n, H, requires_grad=True) for n in (T, V))
labels, table = torch.randint(0, V, (T,)), ladderkern.DistanceTable(torch.randn(512, 20))
loss = lambda n: ladderkern.linear_cross_entropy_with_discrepancy(hidden[:n], weight, labels[:n], table).backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
loss(8)
before = peak()
loss(T)
print((peak() - before) / (4 * T * V))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) <= 1 / 8


def test_the_weight_gradient_accumulates_in_float32(plain):
    # 80 chunks of equal gradients: a bfloat16 sum would stop growing.
    case = plain.make_case(T=400)
    case.labels = case.labels[:1].repeat(400)
    hidden, weight = (t.detach() for t in operands(case, torch.bfloat16))
    hidden = hidden[:1].repeat(400, 1)
    weight.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(case, hidden, weight, reduction="sum"), weight)
    (one,) = torch.autograd.grad(loss_of(case, hidden[:1], weight, case.labels[:1], reduction="sum"), weight)
    torch.testing.assert_close(gradient.float(), 400 * one.float(), rtol=2 * torch.finfo(torch.bfloat16).eps, atol=1e-6)


def test_parts_shift_and_leading_dimensions(plain, backend):
    case = plain.make_case(T=24)
    hidden, weight = operands(case)
    h, labels = hidden.view(2, 12, H), case.labels.view(2, 12)
    for options in ({"reduction": "none"}, {"reduction": "mean", "ce_normalizer": 3, "normalizer": torch.tensor(2)}):
        ours = loss_of(case, h, weight, labels, shift=1, return_parts=True, **options)
        expected = whole(case, h[:, :-1], weight, labels[:, 1:], return_parts=True, **options)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("T", [0, 24])
def test_nothing_to_learn_gives_zero_with_a_graph(plain, backend, T):
    case = plain.make_case(T=T)
    hidden, weight = operands(case)
    loss = loss_of(case, hidden, weight, torch.full((T,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_autocast(plain, backend):
    case = plain.make_case()
    hidden, weight = operands(case)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(case, hidden, weight)
    expected = loss_of(case, *(t.detach().bfloat16().requires_grad_() for t in (hidden, weight)))
    assert torch.equal(loss, expected)
    loss.backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_a_second_derivative_is_an_error(plain):
    case = plain.make_case()
    hidden, weight = operands(case)
    for tensor in (hidden, weight):
        (gradient,) = torch.autograd.grad(loss_of(case, hidden, weight), tensor, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            (gradient.square().sum() + hidden.sum()).backward()


BAD = [
    ("hidden", TypeError, lambda h, w, y: (h.long(), w, y)),
    ("lm_head_weight", ValueError, lambda h, w, y: (h, w.T, y)),
    ("lm_head_weight", ValueError, lambda h, w, y: (h, w[0], y)),
    ("lm_head_weight", TypeError, lambda h, w, y: (h, w.bfloat16(), y)),
    ("labels", ValueError, lambda h, w, y: (h, w, y[1:])),
    ("labels", IndexError, lambda h, w, y: (h, w, y + 40)),
    ("image_start", ValueError, lambda h, w, y: (h, w[:40], torch.full_like(y, -100))),
]


@pytest.mark.parametrize(("name", "error", "spoil"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(plain, backend, name, error, spoil):
    case = plain.make_case()
    hidden, weight, labels = spoil(*(t.detach() for t in operands(case)), case.labels)
    with pytest.raises(error, match=name):
        loss_of(case, hidden, weight, labels)
