"""torch.ops.ladderkern.add_rms_norm, rms_norm and their backwards called directly."""

import pytest
import torch

from ladderkern.testing import floats, guarded, poisoned_allocations

OPS = torch.ops.ladderkern
NAMES = pytest.mark.parametrize("overload", ["default", "reference"])
FORMS = pytest.mark.parametrize(("updates", "weights"), [(0, 1), (1, 1), (2, 2)], ids=["copy", "one", "two"])
OPTIONS = {"eps": 1e-5, "round_sum": True}
PARTS = ("x", "update", "update2", "weight", "weight2")


def forward_inputs(case):
    return tuple(case.inputs.get(name) for name in PARTS)


def backward_inputs(case, outputs):
    _, normed2, stream, rstd = outputs
    grads = case.grads["normed"], case.grads.get("normed2", normed2), case.grads["stream"]
    return *grads, stream, case.inputs["weight"], case.inputs.get("weight2"), rstd


def run(overload, case):
    """What both ops of the pair return."""
    outputs = getattr(OPS.add_rms_norm, overload)(*forward_inputs(case), **OPTIONS)
    return *outputs, *getattr(OPS.add_rms_norm_backward, overload)(*backward_inputs(case, outputs))


@NAMES
@FORMS
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(plain, overload, updates, weights, weight_dtype):
    case = plain.make_case((5, 24), torch.bfloat16, weight_dtype, updates=updates, weights=weights)
    outputs = getattr(OPS.add_rms_norm, overload)(*forward_inputs(case), **OPTIONS)
    for grad in (False, True):
        inputs = tuple(t if t is None else t.clone().requires_grad_(grad) for t in forward_inputs(case))
        torch.library.opcheck(getattr(OPS.add_rms_norm, overload), inputs, OPTIONS)
    torch.library.opcheck(getattr(OPS.add_rms_norm_backward, overload), backward_inputs(case, outputs))


@NAMES
def test_opcheck_of_the_norm_alone(overload):
    x, weight, grad = floats((5, 24)), floats((24,), seed=1), floats((5, 24), seed=2)
    for needed in (False, True):
        inputs = x.clone().requires_grad_(needed), weight.clone().requires_grad_(needed)
        torch.library.opcheck(getattr(OPS.rms_norm, overload), inputs, OPTIONS)
    _, rstd = OPS.rms_norm(x, weight, **OPTIONS)
    torch.library.opcheck(getattr(OPS.rms_norm_backward, overload), (grad, x, weight, rstd))


@NAMES
@FORMS
def test_absent_outputs_are_empty_and_rstd_has_no_gradient(plain, overload, updates, weights):
    leaves = plain.make_case(updates=updates, weights=weights).leaves()
    normed, normed2, stream, rstd = getattr(OPS.add_rms_norm, overload)(*(leaves.get(p) for p in PARTS), **OPTIONS)
    assert [t.requires_grad for t in (normed, normed2, stream, rstd)] == [True, weights == 2, True, False]
    assert normed2.shape == (normed.shape if weights == 2 else (0,))


@NAMES
def test_a_second_derivative_is_an_error(overload):
    x, weight = floats((4, 8)).requires_grad_(), torch.ones(8).requires_grad_()
    for outputs in (
        getattr(OPS.add_rms_norm, overload)(x, x, None, weight, None, **OPTIONS),
        getattr(OPS.rms_norm, overload)(x, weight, **OPTIONS),
    ):
        (gradient,) = torch.autograd.grad(outputs[0].square().sum(), weight, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            gradient.sum().backward()


@NAMES
@FORMS
def test_results_do_not_depend_on_uninitialised_memory(plain, overload, updates, weights):
    case = plain.make_case((40, 37), updates=updates, weights=weights)
    clean = run(overload, case)
    with poisoned_allocations():
        poisoned = run(overload, case)
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [*range(0, 32, 5), 31])
def test_nothing_outside_the_inputs_is_read_or_written(plain, overload, offset, dtype):
    case = plain.make_case((7, 45), dtype, updates=2, weights=2)
    expected = run(overload, case)
    guards = {}
    for group in (case.inputs, case.grads):
        for name, t in group.items():
            layout = "contiguous" if t.dim() == 1 else "column_slice"
            shifted = floats(t.shape, dtype, layout=layout, offset=offset).copy_(t)
            guards[name, id(group)] = guarded(shifted)
            group[name] = guards[name, id(group)].tensor
    for a, b in zip(run(overload, case), expected, strict=True):
        assert torch.equal(a, b)
    for (name, _), guard in guards.items():
        guard.assert_untouched(name)


@NAMES
def test_outputs_are_contiguous_and_of_their_own_memory(plain, overload):
    case = plain.make_case((3, 24), updates=0)
    case.inputs["x"] = floats((3, 24), layout="expanded")
    outputs = run(overload, case)
    pointers = {t.data_ptr() for t in outputs if t.numel()}
    assert len(pointers) == sum(t.numel() > 0 for t in outputs)
    assert case.inputs["x"].data_ptr() not in pointers
    assert all(t.is_contiguous() for t in outputs)


BAD = [
    ("x", TypeError, {"x": torch.ones(5, 24, dtype=torch.int64)}),
    ("x", ValueError, {"x": torch.ones(5, 2, 12)}),
    ("x", ValueError, {"x": torch.ones(24, 5).t()}),
    ("update", ValueError, {"update": torch.ones(24, 5).t()}),
    ("update", TypeError, {"update": torch.ones(5, 24, dtype=torch.bfloat16)}),
    ("update2", ValueError, {"update": None, "update2": torch.ones(5, 24)}),
    ("weight", ValueError, {"weight": torch.ones(48)[::2]}),
    ("weight2", TypeError, {"weight2": torch.ones(24, dtype=torch.float16)}),
]


@pytest.mark.parametrize(("name", "error", "spoiled"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(plain, name, error, spoiled):
    case = plain.make_case()
    case.inputs.update(spoiled)
    with pytest.raises(error, match=f"^{name} "):
        OPS.add_rms_norm.reference(*forward_inputs(case), **OPTIONS)
    with pytest.raises((error, RuntimeError)):  # what serves by default may check in C++
        OPS.add_rms_norm(*forward_inputs(case), **OPTIONS)


@pytest.mark.parametrize("name", ["grad_normed", "grad_stream", "rstd"])
def test_unfit_gradients_are_named(plain, name):
    case = plain.make_case()
    inputs = list(backward_inputs(case, OPS.add_rms_norm(*forward_inputs(case), **OPTIONS)))
    at = {"grad_normed": 0, "grad_stream": 2, "rstd": 6}[name]
    good = inputs[at]
    for bad, error in ((good[1:], ValueError), (good.half(), TypeError)):
        inputs[at] = bad
        with pytest.raises(error, match=f"^{name} "):
            OPS.add_rms_norm_backward.reference(*inputs)
        with pytest.raises((error, RuntimeError)):
            OPS.add_rms_norm_backward(*inputs)
