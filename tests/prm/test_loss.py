"""step_loss: what it computes, what it leaves alone, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from ladderkern import prm
from ladderkern.testing import assert_within_budget, floats

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
S = 60


def hard_labels(n=S):
    labels = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(1))
    labels[::7] = -100
    return labels


def soft_labels(n=S):
    share = torch.randint(0, 9, (n,), generator=torch.Generator().manual_seed(2)) / 8
    return torch.where(hard_labels(n) == -100, -100.0, share)


def both(loss_of, logits):
    """A loss and its gradient."""
    x = logits.clone().requires_grad_()
    loss = loss_of(x)
    loss.backward()
    return loss.detach(), x.grad


@DTYPES
def test_hard_labels_give_cross_entropy_of_upcast_logits(dtype):
    logits, labels = (4 * floats((S, 2), torch.float64)).to(dtype), hard_labels()
    ours = both(lambda x: prm.step_loss(x, labels), logits)
    eager = both(lambda x: F.cross_entropy(x.float(), labels), logits)
    oracle = both(lambda x: F.cross_entropy(x, labels), logits.double())
    assert_within_budget(ours[0], eager[0], oracle[0], "loss")
    assert_within_budget(ours[1], eager[1], oracle[1], "gradient")


@DTYPES
def test_soft_labels_give_the_squared_error_of_the_probability(dtype):
    logits, labels = (4 * floats((S, 2), torch.float64)).to(dtype), soft_labels()
    kept = labels != -100

    def squared_error(x):
        return F.mse_loss(torch.softmax(x, dim=1)[:, 1][kept], labels.to(x.dtype)[kept])

    ours = both(lambda x: prm.step_loss(x, labels), logits)
    eager = both(lambda x: squared_error(x.float()), logits)
    oracle = both(squared_error, logits.double())
    assert_within_budget(ours[0], eager[0], oracle[0], "loss")
    assert_within_budget(ours[1], eager[1], oracle[1], "gradient")


@pytest.mark.parametrize("labels_of", [hard_labels, soft_labels])
def test_scalar_and_vocabulary_heads(labels_of):
    z, labels = floats((S,)), labels_of()
    expected = prm.step_loss(torch.stack([torch.zeros(S), z], dim=1), labels)
    for logits in (z, z[:, None]):
        torch.testing.assert_close(prm.step_loss(logits, labels), expected)
    # A third class with no weight, and the classes the other way round.
    padded = torch.stack([torch.zeros(S), z, torch.full((S,), -math.inf)], dim=1)
    torch.testing.assert_close(prm.step_loss(padded, labels), expected)
    torch.testing.assert_close(prm.step_loss(padded.flip(1)[:, 1:], labels, positive=0), expected)


@pytest.mark.parametrize("labels_of", [hard_labels, soft_labels])
def test_gradients_are_those_of_finite_differences(labels_of):
    logits = floats((8, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: prm.step_loss(x, labels_of(8), positive=2, reduction="none"), (logits,))


def test_the_loss_of_a_saturated_step_is_its_gap():
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0], [0.0, -40.0]])
    losses = prm.step_loss(logits, torch.tensor([1, 1, 0]), reduction="none")
    torch.testing.assert_close(losses, torch.tensor([100.0, math.exp(-100), math.exp(-40)]), atol=1e-40, rtol=1e-6)


def test_float64_logits_give_float64_losses():
    logits, hard, soft = floats((S, 2), torch.float64), hard_labels(), soft_labels().double()
    loss = prm.step_loss(logits, hard)
    torch.testing.assert_close(loss, F.cross_entropy(logits, hard))
    kept = soft != -100
    torch.testing.assert_close(prm.step_loss(logits, soft), F.mse_loss(logits.softmax(1)[kept, 1], soft[kept]))


@pytest.mark.parametrize("labels_of", [hard_labels, soft_labels])
def test_ignored_rows_get_exactly_nothing_whatever_they_hold(labels_of):
    logits, labels = floats((S, 3)), labels_of()
    ignored = labels == -100
    spoilt = logits.masked_fill(ignored[:, None], math.nan)
    loss, gradient = both(lambda x: prm.step_loss(x, labels), spoilt)
    assert torch.equal(loss, prm.step_loss(logits, labels))
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any(dim=1).all()


@pytest.mark.parametrize("labels", [torch.full((5,), -100), torch.full((5,), -100.0), torch.zeros(0, dtype=torch.int64)])
def test_nothing_labelled_gives_zero_with_a_graph(labels):
    for reduction in ("mean", "sum"):
        loss, gradient = both(lambda x, r=reduction: prm.step_loss(x, labels, reduction=r), floats((len(labels), 2)))
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros(len(labels), 2))


def test_reductions():
    logits, labels = floats((S, 2)), hard_labels()
    losses = prm.step_loss(logits, labels, reduction="none")
    assert losses.shape == labels.shape
    assert (losses[labels == -100] == 0).all()
    torch.testing.assert_close(prm.step_loss(logits, labels, reduction="sum"), losses.sum())
    torch.testing.assert_close(prm.step_loss(logits, labels), losses.sum() / (labels != -100).sum())


@pytest.mark.parametrize("labels_of", [hard_labels, soft_labels])
def test_what_comes_after_the_first_error_is_dropped(labels_of):
    logits, labels = floats((S, 2)), labels_of()
    offsets = torch.tensor([0, 5, 5, 30, S])
    kept = prm.drop_after_first_error(labels, offsets)
    assert ((kept == -100) & (labels != -100)).any()
    loss = prm.step_loss(logits, labels, offsets, drop_after_first_error=True)
    assert torch.equal(loss, prm.step_loss(logits, kept))
    assert torch.equal(prm.step_loss(logits, labels, offsets), prm.step_loss(logits, labels))


def test_padded_labels_are_the_packed_ones_and_each_row_is_a_response():
    logits, labels = floats((4, 15, 2)), hard_labels().view(4, 15)
    flat = logits.view(S, 2), labels.view(S)
    assert torch.equal(prm.step_loss(logits, labels), prm.step_loss(*flat))
    losses = prm.step_loss(logits, labels, drop_after_first_error=True, reduction="none")
    offsets = torch.arange(5) * 15
    assert torch.equal(losses.view(S), prm.step_loss(*flat, offsets, drop_after_first_error=True, reduction="none"))
    assert prm.step_loss(logits[:, :0], labels[:, :0], drop_after_first_error=True).item() == 0.0


def test_bool_labels_are_hard_ones():
    logits, labels = floats((S, 2)), hard_labels().clamp(min=0)
    assert torch.equal(prm.step_loss(logits, labels > 0), prm.step_loss(logits, labels))


X, Y = floats((6, 2)), torch.tensor([0, 1, 1, -100, 0, 1])
BAD = [
    ("logits", TypeError, lambda: prm.step_loss(X.long(), Y)),
    ("labels", TypeError, lambda: prm.step_loss(X, Y.to(torch.complex64))),
    ("labels", ValueError, lambda: prm.step_loss(X, Y[1:])),
    ("labels", ValueError, lambda: prm.step_loss(X, Y[:, None])),
    ("labels", ValueError, lambda: prm.step_loss(X[0, 0], Y[0])),
    ("labels", ValueError, lambda: prm.step_loss(X[:, :0], Y)),
    ("labels", ValueError, lambda: prm.step_loss(X, Y + 1)),
    ("labels", ValueError, lambda: prm.step_loss(X, Y.float() * 1.5)),
    ("labels", ValueError, lambda: prm.step_loss(X, torch.full((6,), math.nan))),
    ("positive", ValueError, lambda: prm.step_loss(X, Y, positive=2)),
    ("positive", ValueError, lambda: prm.step_loss(X, Y, positive=-1)),
    ("reduction", ValueError, lambda: prm.step_loss(X, Y, reduction="avg")),
    ("offsets", ValueError, lambda: prm.step_loss(X, Y, drop_after_first_error=True)),
    ("offsets", ValueError, lambda: prm.step_loss(X, Y, torch.tensor([0, 4]), True)),
    ("offsets", ValueError, lambda: prm.step_loss(X.view(2, 3, 2), Y.view(2, 3), torch.tensor([0, 6]), True)),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, call):
    with pytest.raises(error, match=name):
        call()
