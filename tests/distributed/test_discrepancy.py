"""Token discrepancy losses of logits whose vocabulary is sharded over ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import ladderkern
from ladderkern.discrepancy import linear
from ladderkern.testing import assert_within_budget, floats

N, START, V, T, H = 40, 7, 60, 26, 12
SPLITS = {  # columns of each rank
    2: {"even": (30, 30), "uneven": (9, 51), "empty": (60, 0), "text alone": (7, 53)},
    4: {"even": (15, 15, 15, 15), "uneven": (3, 30, 20, 7), "empty": (0, 33, 0, 27), "text alone": (5, 42, 3, 10)},
}
CASES = ("even", "uneven", "empty", "text alone")


def problem(dtype=torch.float32, metric="mse", storage="table"):
    logits = floats((T, V), dtype, seed=1)
    labels = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(2))
    labels[::5] = -100
    return logits, labels, ladderkern.DistanceTable(floats((N, 20), seed=3), metric, storage=storage)


def own(world_size, split):
    widths = SPLITS[world_size][split]
    start = sum(widths[: dist.get_rank()])
    return slice(start, start + widths[dist.get_rank()])


def compare(loss_of, world_size, split, tensors, dim, dtype):
    """The sharded loss and its gradient against the same function of the whole, in its dtype and in float64."""
    part = own(world_size, split)
    shards = [t.detach().clone().requires_grad_() for t in tensors]
    shards[-1] = tensors[-1].narrow(dim, part.start, part.stop - part.start).detach().clone().requires_grad_()
    results = []
    for inputs, group in ((shards, dist.group.WORLD), (tensors, None), ([t.double() for t in tensors], None)):
        inputs = [t if t.requires_grad else t.detach().clone().requires_grad_() for t in inputs]
        loss = loss_of(*inputs, group)
        grad = floats(loss.shape, loss.dtype, seed=8)
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs, grad)))
    for name, a, e, o in zip(("loss", *"abc"), *results, strict=False):
        if a.shape != e.shape:
            e, o = (t.narrow(dim, part.start, part.stop - part.start) for t in (e, o))
        assert a.dtype == (dtype if name != "loss" else a.dtype)
        if dtype == torch.float64:  # there is no oracle above it
            torch.testing.assert_close(a, o)
        else:
            assert_within_budget(a, e, o, name)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("split", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("storage", ["table", "codebook"])
def test_the_discrepancy_of_shards_is_that_of_the_whole(world_size, split, dtype, storage):
    dtype = getattr(torch, dtype)
    logits, labels, table = problem(dtype, "euclidean", storage)
    for reduction in ("none", "mean"):

        def loss_of(x, group, reduction=reduction):
            return ladderkern.token_discrepancy_loss(x, labels, table, image_start=START, reduction=reduction, group=group)

        compare(loss_of, world_size, split, [logits], 1, dtype)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("split", CASES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_joint_loss_of_shards_is_that_of_the_whole(world_size, split, smoothing, dtype):
    dtype = getattr(torch, dtype)
    logits, labels, table = problem(dtype)
    for options in ({"reduction": "none"}, {"weight": 0.3, "normalizer": torch.tensor(50), "ce_normalizer": 60}):
        options = {**options, "label_smoothing": smoothing, "image_start": START}

        def loss_of(x, group, options=options):
            return ladderkern.cross_entropy_with_discrepancy(x, labels, table, group=group, **options)

        compare(loss_of, world_size, split, [logits], 1, dtype)


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize("split", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_linear_loss_of_shards_is_that_of_the_whole(world_size, split, dtype):
    before, linear.chunk_rows = linear.chunk_rows, lambda rows: 7
    try:
        dtype = getattr(torch, dtype)
        _, labels, table = problem()
        tensors = [floats((T, H), dtype, seed=5), floats((V, H), dtype, seed=6)]

        def loss_of(hidden, weight, group):
            return ladderkern.linear_cross_entropy_with_discrepancy(
                hidden, weight, labels, table, image_start=START, label_smoothing=0.1, group=group
            )

        compare(loss_of, world_size, split, tensors, 0, dtype)
    finally:
        linear.chunk_rows = before


@pytest.mark.ranks(2)
def test_rows_may_be_skipped_masked_or_absent(world_size):
    logits, labels, table = problem()
    part = own(2, "even")
    options = {"image_start": START, "group": dist.group.WORLD}
    logits[:, 10:14] = float("-inf")
    logits[labels == -100] = float("nan")
    x = logits[:, part].clone().requires_grad_()
    loss = ladderkern.token_discrepancy_loss(x, labels, table, **options)
    loss.backward()
    expected = ladderkern.token_discrepancy_loss(logits, labels, table, image_start=START)
    torch.testing.assert_close(loss, expected)
    assert x.grad.isfinite().all()
    assert (x.grad[labels == -100] == 0).all()
    nothing = ladderkern.token_discrepancy_loss(x, torch.full_like(labels, -100), table, **options)
    nothing.backward()
    assert nothing.item() == 0.0
    assert ladderkern.token_discrepancy_loss(x[:0], labels[:0], table, **options).item() == 0.0
    assert ladderkern.cross_entropy_with_discrepancy(x[:0], labels[:0], table, **options).item() == 0.0


@pytest.mark.ranks(2)
def test_shift_moves_labels_in_each_sequence(world_size):
    logits, labels, table = problem()
    x, y = logits.view(2, 13, V), labels.view(2, 13)
    options = {"image_start": START, "shift": 1}
    part = own(2, "uneven")
    loss = ladderkern.cross_entropy_with_discrepancy(x[..., part], y, table, group=dist.group.WORLD, **options)
    torch.testing.assert_close(loss, ladderkern.cross_entropy_with_discrepancy(x, y, table, **options))


@pytest.mark.ranks(2)
def test_errors_are_raised_on_every_rank(world_size):
    logits, labels, table = problem()
    x, group = logits[:, own(2, "even")], dist.group.WORLD
    with pytest.raises(ValueError, match="image_start"):
        ladderkern.token_discrepancy_loss(x, labels, table, image_start=21, group=group)
    with pytest.raises(IndexError, match=r"\[0, 60\)"):
        ladderkern.cross_entropy_with_discrepancy(x, labels + 30, table, image_start=START, group=group)
    with ladderkern.backend("native"), pytest.raises(ladderkern.BackendUnavailable, match="plain PyTorch"):
        ladderkern.token_discrepancy_loss(x, labels, table, image_start=START, group=group)
    y = x.clone().requires_grad_()
    loss = ladderkern.token_discrepancy_loss(y, labels, table, image_start=START, group=group)
    (gradient,) = torch.autograd.grad(loss, y, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        (gradient.sum() + y.sum()).backward()


def test_a_group_of_one_is_no_group(on_ranks):
    on_ranks(1, alone)


def alone():
    logits, labels, table = problem()
    with pytest.MonkeyPatch.context() as patch:
        for collective in ("all_reduce", "all_gather"):
            patch.setattr(dist, collective, None)
        loss = ladderkern.token_discrepancy_loss(logits, labels, table, image_start=START, group=dist.group.WORLD)
    assert torch.equal(loss, ladderkern.token_discrepancy_loss(logits, labels, table, image_start=START))
