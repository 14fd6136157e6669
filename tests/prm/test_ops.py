"""torch.ops.ladderkern.prm_scores and its backward called directly."""

import pytest
import torch

from ladderkern.testing import floats, guarded, poisoned_allocations

OPS = torch.ops.ladderkern
NAMES = pytest.mark.parametrize("overload", ["default", "reference"])
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])


def call(overload, case, **changes):
    inputs = [
        changes.pop(name, tensor) for name, tensor in zip(("scores", "offsets", "mask", "weights"), case.inputs, strict=True)
    ]
    return getattr(OPS.prm_scores, overload)(*inputs, **{**case.options, **changes})


def backward_call(case, outputs, seed=3, **changes):
    """(inputs, keywords) of the backward op."""
    grads = [floats(t.shape, t.dtype, seed=seed) for t in outputs[:2]]
    named = dict(zip(("grad_steps", "grad_responses"), grads, strict=True))
    named |= dict(zip(("scores", "offsets", "mask", "weights"), case.inputs, strict=True))
    named |= dict(zip(("steps", "responses", "indices"), outputs, strict=False))
    return tuple((named | changes).values()), case.options


@NAMES
@MASKED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(plain, overload, kind, masked, dtype):
    # without empty responses and masked rows: opcheck compares gradients of sums, which NaN would hide
    case = plain.make_case((3, 1, 7), dtype=dtype, **kind)
    if masked:
        case.mask = torch.ones(11, dtype=torch.bool)
    op = getattr(OPS.prm_scores, overload)
    for grad in (False, True):
        torch.library.opcheck(op, (case.scores.clone().requires_grad_(grad), *case.inputs[1:]), case.options)


@NAMES
@MASKED
def test_opcheck_of_the_backward(plain, overload, kind, masked):
    case = plain.make_case(dtype=torch.bfloat16, masked=masked, **kind)
    inputs, keywords = backward_call(case, call(overload, case))
    torch.library.opcheck(getattr(OPS.prm_scores_backward, overload), inputs, keywords)


@NAMES
def test_only_steps_and_responses_are_differentiable(plain, overload):
    case = plain.make_case()
    outputs = call(overload, case, scores=case.scores.clone().requires_grad_())
    assert [t.requires_grad for t in outputs] == [True, True, False, False]


@NAMES
def test_a_second_derivative_is_an_error(plain, overload):
    case = plain.make_case()
    x = case.scores.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(overload, case, scores=x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="prm_scores is differentiable once"):
        gradient.square().sum().backward()


@NAMES
@MASKED
def test_results_do_not_depend_on_uninitialised_memory(plain, overload, kind, masked):
    case = plain.make_case(masked=masked, offset=1, layout="column_slice", **kind)

    def run():
        outputs = call(overload, case)
        inputs, keywords = backward_call(case, outputs)
        return (*outputs, getattr(OPS.prm_scores_backward, overload)(*inputs, **keywords))

    clean = run()
    with poisoned_allocations():
        poisoned = run()
    for a, b in zip(clean, poisoned, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@NAMES
@MASKED
@pytest.mark.parametrize("offset", range(0, 32, 5))
def test_nothing_outside_the_inputs_is_read_or_written(plain, overload, kind, masked, offset):
    case = plain.make_case(masked=masked, offset=offset, layout="column_slice", dtype=torch.bfloat16, **kind)
    outputs = call(overload, case)
    inputs, keywords = backward_call(case, outputs)
    expected = (*outputs, getattr(OPS.prm_scores_backward, overload)(*inputs, **keywords))
    # nothing is NaN but by design (empty responses, rows off the mask), so a NaN from outside shows
    guards = [guarded(t) if t is not None and t.dtype != torch.bool else None for t in inputs]
    inputs = [t if guard is None else guard.tensor for t, guard in zip(inputs, guards, strict=True)]
    outputs = getattr(OPS.prm_scores, overload)(*inputs[2:6], **keywords)
    actual = (*outputs, getattr(OPS.prm_scores_backward, overload)(*inputs, **keywords))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    for guard in guards:
        if guard is not None:
            guard.assert_untouched()


BAD = [
    ("scores", TypeError, lambda c: {"scores": c.scores.long()}),
    ("scores", ValueError, lambda c: {"scores": c.scores[:, 0]}),
    ("scores", ValueError, lambda c: {"scores": c.scores[:, :0]}),
    ("offsets", TypeError, lambda c: {"offsets": c.offsets.int()}),
    ("offsets", ValueError, lambda c: {"offsets": c.offsets[:0]}),
    ("offsets", ValueError, lambda c: {"offsets": c.offsets[None]}),
    ("offsets", ValueError, lambda c: {"offsets": c.offsets[1:] + 1}),
    ("offsets", ValueError, lambda c: {"offsets": c.offsets[:-2]}),
    ("offsets", ValueError, lambda c: {"offsets": c.offsets * 10**12}),
    ("offsets", ValueError, lambda c: {"offsets": c.offsets.flip(0)}),
    ("mask", TypeError, lambda c: {"mask": torch.ones(len(c.scores))}),
    ("mask", ValueError, lambda c: {"mask": torch.ones(3, dtype=torch.bool)}),
    ("class_weights", TypeError, lambda c: {"weights": torch.ones(2, dtype=torch.float64)}),
    ("class_weights", ValueError, lambda c: {"weights": torch.ones(3)}),
    ("positive", ValueError, lambda c: {"positive": 2}),
    ("threshold", ValueError, lambda c: {"threshold": -0.5}),
    ("probabilities", ValueError, lambda c: {"probabilities": True}),
]


@pytest.mark.parametrize(("name", "error", "spoil"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(plain, name, error, spoil):
    case = plain.make_case((4, 2, 1))
    with pytest.raises(error, match=f"^{name} "):
        call("reference", case, **spoil(case))
    with pytest.raises((error, RuntimeError), match=name):  # what serves by default may check in C++
        call("default", case, **spoil(case))


@pytest.mark.parametrize("name", ["grad_steps", "grad_responses", "steps", "responses", "indices"])
def test_unfit_gradients_and_saved_outputs_are_named(plain, name):
    case = plain.make_case()
    outputs = call("reference", case)
    good = dict(zip(("grad_steps", "grad_responses", "steps", "responses", "indices"), (*outputs[:2], *outputs), strict=False))
    for bad, error in ((good[name][:, 1:], ValueError), (good[name][:2], ValueError), (good[name].half(), TypeError)):
        inputs, keywords = backward_call(case, outputs, **{name: bad})
        with pytest.raises(error, match=f"^{name} "):
            OPS.prm_scores_backward.reference(*inputs, **keywords)
        with pytest.raises((error, RuntimeError), match=name):
            OPS.prm_scores_backward(*inputs, **keywords)
