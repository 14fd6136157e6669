"""The Triton kernels in the interpreter as ops: rows wherever they lie in memory, guard bands, autograd, opcheck, arguments."""

import itertools

import pytest
import torch
from discrepancy_rows import BOTH, DTYPES, EACH, assert_right, distance_table, run, small

from ladderkern.testing import floats, guarded

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf

OPS = torch.ops.ladderkern
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
NAN = float("nan")


@EACH
@DTYPES
@pytest.mark.parametrize("offset", [4, 31])
def test_slices_of_a_wider_parent_at_any_offset(dtype, offset, joint):
    case = small(3, dtype=dtype, start=offset % 5, **joint)
    wider = torch.zeros(3, 150 + 37, dtype=dtype)
    parent = wider[:, offset : offset + 150].copy_(case.logits)
    memory, labels = guarded(parent), guarded(torch.stack([case.labels] * 3, dim=1)[:, 1])
    case.logits, case.labels = memory.tensor, labels.tensor
    assert case.logits.stride() == (187, 1)
    assert case.labels.stride() == (3,)
    assert_right(case, "triton")
    memory.assert_untouched("logits")
    labels.assert_untouched("labels")


@EACH
def test_rows_further_apart_than_32_bits(joint):
    case = small(3, 70, 33, dtype=F16, **joint)
    case.labels[2] = case.labels[1]
    case.logits = torch.empty(2**31 + 200, dtype=F16).as_strided((3, 70), (2**30 + 50, 1)).copy_(case.logits)
    assert_right(case, "triton")


@BOTH
@DTYPES
def test_expanded_and_strided_gradients(dtype, joint):
    case = small(dtype=dtype, **joint)
    wide = case.grads[0].dtype
    case.grads = [torch.tensor(0.7, dtype=wide).expand(6), torch.tensor(-2.0, dtype=wide).expand(6)]
    assert_right(case, "triton")
    case.grads = [floats((6, 3), wide, seed=11)[:, 1], floats((6, 5), wide, seed=12)[:, 4]]
    assert_right(case, "triton")


@EACH
def test_no_rows(joint):
    ours = run(small(0, **joint), "triton")
    assert ours.pop("gradient").shape == (0, 150)
    assert all(result.shape == (0,) for result in ours.values())


@BOTH
@DTYPES
@pytest.mark.parametrize("sizes", [(150, 101, 4), (131, 67, 64)], ids=str)
def test_nothing_is_written_beside_the_outputs(sizes, dtype, joint, monkeypatch, small_blocks):
    from ladderkern.discrepancy import kernels

    made = []

    class Guarding:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, **options):
            made.append(guarded(torch.full(shape, NAN, **options)))
            return made[-1].tensor

    monkeypatch.setattr(kernels, "torch", Guarding())
    V, N, start = sizes
    case = small(3, V, N, start, dtype, **joint)
    ours = run(case, "triton")
    assert len(made) == len(ours)
    assert all(result.isfinite().all() for result in ours.values())
    for i, guard in enumerate(made):
        guard.assert_untouched(f"output {i}")


@EACH
def test_autograd_twice_from_one_graph(joint):
    case = small(dtype=BF16, **joint)
    op = OPS.cross_entropy_discrepancy if joint else OPS.token_discrepancy
    logits = case.logits.clone().requires_grad_()
    results = op.triton(logits, case.labels, case.table, **case.options, **joint)[: 2 if joint else 1]
    for first, second in itertools.pairwise([floats((6,), seed=s) for s in (20, 21, 22)]):
        case.grads = [first, second]
        (gradient,) = torch.autograd.grad(results, logits, case.grads[-len(results) :], retain_graph=True)
        assert torch.equal(gradient, run(case, "triton")["gradient"])


@pytest.mark.parametrize("storage", ["table", "codebook"])
@BOTH
def test_opcheck(storage, joint):
    case = small(dtype=BF16, table=distance_table(33, storage=storage), N=33, V=50, **joint)
    inputs, options = (case.logits, case.labels, case.table), {**case.options, **joint}
    forward, backward = (
        (OPS.cross_entropy_discrepancy.triton, OPS.cross_entropy_discrepancy_backward.triton)
        if joint
        else (OPS.token_discrepancy.triton, OPS.token_discrepancy_backward.triton)
    )
    rows = forward(*inputs, **options)
    torch.library.opcheck(forward, (case.logits.clone().requires_grad_(), *inputs[1:]), options)
    torch.library.opcheck(backward, (*case.grads[: 2 if joint else 1], *inputs, *rows[1 if joint else 0 :]), options)


def test_bad_arguments_are_refused_by_name():
    case = small()
    with pytest.raises(TypeError, match="labels"):
        OPS.token_discrepancy.triton(case.logits, case.labels.int(), case.table, **case.options)
    with pytest.raises(ValueError, match="image_start"):
        OPS.token_discrepancy.triton(case.logits, case.labels, case.table, **{**case.options, "image_start": 60})
    rows = (case.grads[0],) * 3
    with pytest.raises(ValueError, match="grad_output"):
        OPS.token_discrepancy_backward.triton(case.grads[0][:3], case.logits, case.labels, case.table, *rows, **case.options)
