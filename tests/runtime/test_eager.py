"""The short way past torch.library: what it must leave alone, and that it is taken."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ladderkern.ladder.ops import RMS_NORM
from ladderkern.runtime import eager

KEYWORDS = {"eps": 1e-6, "round_sum": True}


def inputs(requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 8, generator=generator), torch.randn(8, generator=generator)
    return x.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


@pytest.mark.parametrize("overload", [RMS_NORM.default, RMS_NORM.reference], ids=str)
def test_values_and_gradients_are_those_of_the_op(overload):
    (x, weight), plain = inputs(), inputs()
    normed, rstd = eager.call(RMS_NORM, overload, x, weight, **KEYWORDS)
    expected, expected_rstd = overload(*plain, **KEYWORDS)
    assert not rstd.requires_grad
    ours = torch.autograd.grad(normed.square().sum(), (x, weight))
    theirs = torch.autograd.grad(expected.square().sum(), plain)
    for one, other in zip((normed, rstd, *ours), (expected, expected_rstd, *theirs), strict=True):
        assert torch.equal(one, other)


def test_the_graph_names_the_overload():
    normed, _ = eager.call(RMS_NORM, RMS_NORM.reference, *inputs(), **KEYWORDS)
    assert normed.grad_fn.name() == "ladderkern_rms_norm_referenceBackward"


def test_without_gradients_there_is_no_graph():
    assert eager.call(RMS_NORM, RMS_NORM.default, *inputs(requires_grad=False), **KEYWORDS)[0].grad_fn is None
    with torch.no_grad():
        assert eager.call(RMS_NORM, RMS_NORM.default, *inputs(), **KEYWORDS)[0].grad_fn is None


def test_modes_see_the_op_and_its_backward():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        eager.call(RMS_NORM, RMS_NORM.default, *inputs(), **KEYWORDS)[0].sum().backward()
    assert RMS_NORM.default in seen
    assert torch.ops.ladderkern.rms_norm_backward.default in seen


def test_subclasses_see_the_op():
    seen = []

    class Noisy(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    x, weight = inputs()
    eager.call(RMS_NORM, RMS_NORM.default, x.detach().as_subclass(Noisy), weight, **KEYWORDS)
    assert RMS_NORM.default in seen
