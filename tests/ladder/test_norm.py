"""ladderkern.add_rms_norm and rms_norm as users call them, in every backend that serves CPU tensors."""

import pytest
import torch

import ladderkern
from ladderkern.testing import LAYOUTS, assert_within_budget, floats

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weights", [1, 2])
@pytest.mark.parametrize("updates", [0, 1, 2])
def test_values_and_gradients_are_within_budget(plain, backend, convention, updates, weights, dtype):
    case = plain.make_case((2, 33, 200), dtype, updates=updates, weights=weights, scale=3.0)
    plain.check(case, convention=convention)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rms_norm_is_within_budget(plain, backend, convention, dtype):
    case = plain.make_case((7, 129), dtype, updates=0)

    def gives(norm, wide=None):
        x, weight = case.leaves(wide).values()
        normed = norm(x, weight)
        normed.backward(case.grads["normed"].to(normed.dtype))
        return normed.detach(), x.grad, weight.grad

    actual = gives(lambda x, w: ladderkern.rms_norm(x, w, plain.eps, convention=convention))
    chain = gives(plain.llama_norm)
    truth = gives(lambda x, w: torch.nn.functional.rms_norm(x, w.shape, w, plain.eps), torch.float64)
    for a, b, c in zip(actual, chain, truth, strict=True):
        assert_within_budget(a, b, c)


@pytest.mark.parametrize("weight_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights_may_have_another_dtype(plain, backend, dtype, weight_dtype):
    case = plain.make_case((6, 50), dtype, weight_dtype)
    if weight_dtype == torch.float64 != dtype:
        with pytest.raises(TypeError, match="weight may be float64 only where x is"):
            plain.fused(**case.leaves())
    else:
        plain.check(case)


def test_dtypes_are_promoted_as_by_addition(backend):
    x, update = floats((3, 8), torch.bfloat16).requires_grad_(), floats((3, 8), torch.float32).requires_grad_()
    normed, stream = ladderkern.add_rms_norm(x, update, torch.ones(8, dtype=torch.bfloat16))
    assert torch.equal(stream, x + update)
    assert normed.dtype == torch.float32
    normed.sum().backward()
    assert (x.grad.dtype, update.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "channels_last"])
def test_rows_may_lie_in_any_way(plain, backend, layout):
    case = plain.make_case((4, 3, 40))
    inputs = {name: floats((4, 3, 40), seed=i, layout=layout) for i, name in enumerate(("x", "update"))}
    weight = case.inputs["weight"]
    spread = plain.fused(**inputs, weight=weight)
    packed = plain.fused(**{name: t.contiguous() for name, t in inputs.items()}, weight=weight)
    for name, value in spread.items():
        assert torch.equal(value, packed[name])


@pytest.mark.parametrize("layout", ["transposed", "column_slice", "every_second", "expanded"])
def test_incoming_gradients_may_lie_in_any_way(plain, backend, layout):
    case = plain.make_case((6, 40), weights=2)
    spread = {name: floats((6, 40), seed=i, layout=layout) for i, name in enumerate(case.grads)}
    packed = {name: t.contiguous() for name, t in spread.items()}
    for a, b in zip(*(plain.results(plain.fused, case.leaves(), g).values() for g in (spread, packed)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("used", ["normed", "normed2", "stream"])
def test_gradients_of_sums_and_of_unused_outputs(plain, backend, used):
    """A sum's gradient has stride 0; an output that nothing reads has none."""
    grads = []
    for function in (plain.fused, plain.eager):
        leaves = plain.make_case((6, 40), torch.float64, weights=2).leaves()
        function(**leaves)[used].sum().backward()
        grads.append([torch.zeros_like(t) if t.grad is None else t.grad for t in leaves.values()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (8,)])
def test_gradients_of_leaves_share_no_memory(plain, backend, shape):
    """Else the second backward, which adds in place, would add twice."""
    leaves = plain.make_case(shape, updates=2).leaves()
    for _ in range(2):
        plain.fused(**leaves)["normed"].square().sum().backward()
    once = plain.make_case(shape, updates=2).leaves()
    plain.fused(**once)["normed"].square().sum().backward()
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, 2 * once[name].grad), name


def test_the_same_tensor_may_come_twice(backend):
    x, weight = floats((4, 16), torch.float64).requires_grad_(), torch.ones(16, dtype=torch.float64)
    doubled = ladderkern.add_rms_norm(x, x, weight)[0]
    (expected,) = torch.autograd.grad(ladderkern.rms_norm(2 * x, weight).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(doubled.square().sum(), x)[0], expected)


def test_without_an_update_the_stream_is_a_copy(backend):
    x = floats((3, 8))
    _, stream = ladderkern.add_rms_norm(x, None, torch.ones(8))
    assert torch.equal(stream, x)
    assert stream.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 5), (0, 1)])
def test_batches_may_be_empty(plain, backend, shape):
    case = plain.make_case(shape, updates=2, weights=2)
    found = plain.results(plain.fused, case.leaves(), case.grads)
    for name, value in found.items():
        if "weight" in name:
            assert torch.equal(value, torch.zeros(shape[-1]))
        else:
            assert value.shape == shape
    assert ladderkern.rms_norm(case.inputs["x"], case.inputs["weight"]).shape == shape


def test_gradcheck(plain, backend, convention):
    leaves = plain.make_case((4, 5), torch.float64, updates=2, weights=2).leaves()
    names = list(leaves)

    def function(*tensors):
        return tuple(plain.fused(**dict(zip(names, tensors, strict=True)), convention=convention).values())

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))
    assert torch.autograd.gradcheck(
        lambda x, w: ladderkern.rms_norm(x, w, convention=convention), (leaves["x"], leaves["weight"])
    )


def test_a_second_derivative_is_an_error(plain, backend):
    leaves = plain.make_case().leaves()
    (gradient,) = torch.autograd.grad(plain.fused(**leaves)["normed"].sum(), leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


def test_the_backward_uses_the_backend_of_its_forward(plain):
    with ladderkern.backend("reference"):
        normed = plain.fused(**plain.make_case().leaves())["normed"]
    assert "add_rms_norm_reference" in normed.grad_fn.name()


def test_a_backend_that_cannot_serve_says_why():
    with ladderkern.backend("cuda"), pytest.raises(ladderkern.BackendUnavailable, match="rms_norm"):
        ladderkern.rms_norm(torch.ones(2, 4), torch.ones(4))


X, W = torch.ones(3, 8), torch.ones(8)
BAD = [
    ("x", ValueError, (torch.ones(()), None, W), {}),
    ("x", ValueError, (torch.ones(3, 0), None, torch.ones(0)), {}),
    ("x", TypeError, (X.long(), None, W), {}),
    ("update", ValueError, (X, X[:2], W), {}),
    ("update", ValueError, (X, torch.ones(8), W), {}),
    ("update2", ValueError, (X, None, W), {"update2": X}),
    ("weight", ValueError, (X, None, W[:4]), {}),
    ("weight", ValueError, (X, None, X), {}),
    ("weight", TypeError, (X, None, W.long()), {}),
    ("weight2", TypeError, (X, None, W), {"weight2": W.half()}),
    ("weight2", ValueError, (X, None, W), {"weight2": W[:4]}),
    ("convention", ValueError, (X, None, W), {"convention": "exact"}),
]


@pytest.mark.parametrize(("name", "error", "inputs", "options"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, inputs, options):
    with pytest.raises(error, match=f"^{name} "):
        ladderkern.add_rms_norm(*inputs, **options)
