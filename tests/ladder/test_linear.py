"""column_linear is F.linear."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ladderkern.ladder import column_linear
from ladderkern.testing import assert_within_budget, floats


def run(linear, shape, bias, dtype=torch.float64, frozen=()):
    """Output and gradients of x, weight and bias, in a graph in which x has been computed."""
    tensors = {"x": floats((*shape, 5), dtype, seed=1), "weight": floats((7, 5), dtype, seed=2)}
    if bias:
        tensors["bias"] = floats((7,), dtype, seed=3)
    for name, tensor in tensors.items():
        tensor.requires_grad_(name not in frozen)
    x, *parameters = tensors.values()
    y = linear(x * 1, *parameters)
    y.backward(floats(y.shape, y.dtype, seed=4))
    return y.detach(), *(tensor.grad for tensor in tensors.values())


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_linear(shape, bias):
    torch.testing.assert_close(run(column_linear, shape, bias), run(F.linear, shape, bias))


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    torch.testing.assert_close(run(column_linear, (2, 3), True, frozen=frozen), run(F.linear, (2, 3), True, frozen=frozen))


def test_autocast_is_followed():
    with torch.autocast("cpu", torch.bfloat16):
        actual, eager = (run(linear, (2, 3), True, torch.float32) for linear in (column_linear, F.linear))
    assert [t.dtype for t in actual] == [t.dtype for t in eager] == [torch.bfloat16, *[torch.float32] * 3]
    for mine, plain, oracle in zip(actual, eager, run(F.linear, (2, 3), True), strict=True):
        assert_within_budget(mine, plain, oracle)


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(column_linear, (2, 3), True)
    torch.testing.assert_close(actual, run(F.linear, (2, 3), True))


def test_checkpoints_and_repeated_backwards_are_served():
    def checkpointed(*tensors):
        return checkpoint(column_linear, *tensors, use_reentrant=False)

    torch.testing.assert_close(run(checkpointed, (2, 3), True), run(F.linear, (2, 3), True))
    x, weight = (floats((5, 5), torch.float64, seed=i).requires_grad_() for i in range(2))
    y = column_linear(x * 1, weight).sum()
    first = torch.autograd.grad(y, [x, weight], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, [x, weight]), first, rtol=0, atol=0)


def test_the_gradient_of_the_weight_comes_after_those_of_the_input():
    order = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            order.append("x")
            return grad

    x, weights = floats((3, 5)).requires_grad_(), [floats((5, 5), seed=i).requires_grad_() for i in range(2)]
    for weight in weights:
        weight.register_hook(lambda grad: order.append("weight"))
    source = Seen.apply(x)
    y = sum(column_linear(source, weight).sum() for weight in weights)
    source.grad_fn._set_sequence_nr(torch.autograd._get_sequence_nr())  # as a stack does with what enters a branch
    y.backward()
    assert order == ["x", "weight", "weight"]


def test_graphs_keep_linear():
    x, weight = floats((3, 5)).requires_grad_(), floats((7, 5), seed=1).requires_grad_()

    def function(x, weight):
        return column_linear(x * 2, weight)

    y = torch.compile(function, backend="aot_eager", fullgraph=True)(x, weight)
    torch.testing.assert_close(y, function(x, weight))
    gradients = [torch.autograd.grad(f(x, weight).sum(), [x, weight]) for f in (function, lambda x, w: F.linear(x * 2, w))]
    torch.testing.assert_close(*gradients)
