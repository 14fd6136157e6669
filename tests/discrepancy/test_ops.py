"""torch.ops.ladderkern.token_discrepancy and cross_entropy_discrepancy called directly."""

import pytest
import torch

from ladderkern.testing import floats, guarded, poisoned_allocations

OPS = torch.ops.ladderkern
NAMES = pytest.mark.parametrize("overload", ["default", "reference"])
JOINT = pytest.mark.parametrize("joint", [False, True], ids=["discrepancy", "joint"])


def call(overload, joint, case, logits=None, labels=None, table=None, **changes):
    packet = OPS.cross_entropy_discrepancy if joint else OPS.token_discrepancy
    keywords = {**case.table.options, "image_start": case.start, **changes}
    if joint:
        keywords = {"ignore_index": -100, "label_smoothing": 0.1, **keywords}
    inputs = (
        case.logits if logits is None else logits,
        case.labels if labels is None else labels,
        case.table.data if table is None else table,
    )
    return getattr(packet, overload)(*inputs, **keywords)


def backward_call(overload, joint, case, outputs, grads, **changes):
    packet = OPS.cross_entropy_discrepancy_backward if joint else OPS.token_discrepancy_backward
    keywords = {**case.table.options, "image_start": case.start, **changes}
    if joint:
        keywords |= {"ignore_index": -100, "label_smoothing": 0.1}
    saved = outputs[1:] if joint else outputs
    inputs = (*grads, case.logits, case.labels, case.table.data, *saved)
    return getattr(packet, overload), inputs, keywords


@NAMES
@JOINT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(plain, overload, joint, storage, dtype):
    case = plain.make_case(T=9, dtype=dtype, storage=storage)
    packet = OPS.cross_entropy_discrepancy if joint else OPS.token_discrepancy
    keywords = {**case.table.options, "image_start": 4}
    if joint:
        keywords |= {"ignore_index": -100, "label_smoothing": 0.1}
    for grad in (False, True):
        inputs = (case.logits.clone().requires_grad_(grad), case.labels, case.table.data)
        torch.library.opcheck(getattr(packet, overload), inputs, keywords)


@NAMES
@JOINT
def test_opcheck_of_the_backward(plain, overload, joint, storage):
    case = plain.make_case(T=9, dtype=torch.bfloat16, storage=storage)
    outputs = call(overload, joint, case)
    grads = tuple(floats((2, 9), seed=3)) if joint else (floats((9,), seed=3),)
    op, inputs, keywords = backward_call(overload, joint, case, outputs, grads)
    torch.library.opcheck(op, inputs, keywords)


@NAMES
@JOINT
def test_only_the_loss_is_differentiable(plain, overload, joint):
    case = plain.make_case()
    outputs = call(overload, joint, case, logits=case.logits.clone().requires_grad_())
    assert [t.requires_grad for t in outputs] == ([True] * 2 + [False] * 4 if joint else [True, False, False])


@NAMES
@JOINT
def test_a_second_derivative_is_an_error(plain, overload, joint):
    case = plain.make_case()
    x = case.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call(overload, joint, case, logits=x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.square().sum().backward()


@NAMES
@JOINT
def test_results_do_not_depend_on_uninitialised_memory(plain, overload, joint):
    case = plain.make_case(T=40, gap=3, offset=1)
    grads = tuple(floats((2, 40), seed=3)) if joint else (floats((40,), seed=3),)

    def run():
        outputs = call(overload, joint, case)
        op, inputs, keywords = backward_call(overload, joint, case, outputs, grads)
        return (*outputs, op(*inputs, **keywords))

    clean = run()
    with poisoned_allocations():
        poisoned = run()
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)


@NAMES
@JOINT
@pytest.mark.parametrize("offset", range(0, 32, 5))
def test_nothing_outside_the_inputs_is_read_or_written(plain, overload, joint, offset):
    case = plain.make_case(T=11, gap=5, offset=offset, dtype=torch.bfloat16)
    expected = call(overload, joint, case)
    guards = [guarded(t) for t in (case.logits, case.labels, case.table.data)]
    actual = call(overload, joint, case, *(guard.tensor for guard in guards))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    for guard in guards:
        guard.assert_untouched()


BAD = [
    ("logits", TypeError, lambda c: {"logits": c.logits.long()}),
    ("logits", ValueError, lambda c: {"logits": c.logits[None]}),
    ("logits", ValueError, lambda c: {"logits": c.logits.t().contiguous().t()}),
    ("labels", TypeError, lambda c: {"labels": c.labels.int()}),
    ("labels", ValueError, lambda c: {"labels": c.labels[1:]}),
    ("labels", ValueError, lambda c: {"labels": c.labels[:, None]}),
    ("table", TypeError, lambda c: {"table": c.table.data.long()}),
    ("table", ValueError, lambda c: {"table": c.table.data[1:]}),
    ("table", ValueError, lambda c: {"table": c.table.data.t().contiguous().t()[:, ::2]}),
    ("table", TypeError, lambda c: {"metric": 1}),  # float16 is no codebook
    ("metric", ValueError, lambda c: {"metric": 4}),
    ("image_start", ValueError, lambda c: {"image_start": -1}),
    ("image_start", ValueError, lambda c: {"image_start": 30}),
]


@JOINT
@pytest.mark.parametrize(("name", "error", "spoil"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(plain, joint, name, error, spoil):
    case = plain.make_case()
    with pytest.raises(error, match=name):
        call("reference", joint, case, **spoil(case))
    with pytest.raises((error, RuntimeError)):  # what serves by default may check in C++
        call("default", joint, case, **spoil(case))


def test_unfit_gradients_are_named(plain):
    case = plain.make_case()
    outputs = call("reference", False, case)
    for bad, error in ((torch.ones(3), ValueError), (torch.ones(23, dtype=torch.float64), TypeError)):
        op, inputs, keywords = backward_call("reference", False, case, outputs, (bad,))
        with pytest.raises(error, match="grad_output"):
            op(*inputs, **keywords)
