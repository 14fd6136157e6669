"""The native ops where responses meet the blocks in which rows, and the batches in which responses, are worked on."""

import math

import pytest
import torch

from ladderkern.prm import ops, reference
from ladderkern.testing import assert_within_budget, floats, guarded, laid_out, poisoned_allocations

pytestmark = pytest.mark.usefixtures("native")

BLOCK, BATCH = 512, 64  # of csrc/cpu/prm_steps.h and prm.cpp
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OTHERS = (7, 3, 0, 5, 9, 1) * 5  # so that the budget does not hang on plain PyTorch's luck with one response
SHAPES = {
    "ends at a block": (BLOCK, *OTHERS),
    "one row past a block": (BLOCK + 1, *OTHERS),
    "blocks begin inside": (BLOCK - 1, 2, BLOCK - 3, 5, 3 * BLOCK + 7, *OTHERS),
    "blocks begin between": (BLOCK, 0, BLOCK, 0, 0, *OTHERS, 2 * BLOCK - sum(OTHERS), 0),
    "a batch": (3,) * BATCH,
    "one more than a batch": (3,) * (BATCH + 1),
    "batches of nothing": (0,) * (2 * BATCH + 3) + OTHERS + (0,) * (3 * BATCH),
    "many": tuple(i % 7 for i in range(5 * BATCH - 1)),
}
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])


def upstream(outputs):
    """Gradients of steps and responses, 0 where the outputs are NaN by design."""
    grads = [floats(t.shape, t.dtype, seed=4) for t in outputs]
    return [torch.where(t.isnan(), 0.0, g) for t, g in zip(outputs, grads, strict=True)]


def run(inputs, options, grads=None):
    """What both ops return."""
    with poisoned_allocations():
        outputs = ops.PRM_SCORES.default(*inputs, **options)
        grads = upstream(outputs[:2]) if grads is None else grads
        return (*outputs, ops.PRM_SCORES_BACKWARD.default(*grads, *inputs, *outputs[:3], **options))


def eager_gradient(case, dtype):
    scores = case.scores.to(dtype).requires_grad_()
    outputs = case.eager(dtype, scores)
    real = [torch.where(t.isnan(), 0.0, t) for t in outputs]
    return torch.autograd.grad(real, scores, [g.to(dtype) for g in upstream(case.eager(case.wide))])[0]


def make_case(plain, *args, **options):
    case = plain.make_case(*args, **options)
    case.wide = reference.wide(case.scores.dtype)
    return case


def assert_same_bits(actual, expected, what=""):
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)), what


# Of float64, whose sums PyTorch adds in another order, test_native_determinism.py shows that the place does not matter.
@MASKED
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_responses_of_every_place_are_within_budget(plain, kind, shape, dtype, masked):
    case = make_case(plain, SHAPES[shape], dtype=dtype, masked=masked, **{**kind, "C": min(kind["C"], 9)})
    steps, responses, indices, min_is_last, gradient = run(case.inputs, case.options)
    oracle, eager = case.oracle(), case.eager(case.wide)
    for packed, names in enumerate((ops.STEPS, ops.RESPONSES)):
        for i, name in enumerate(names):
            assert_within_budget((steps, responses)[packed][i], eager[packed][i], oracle[packed][i], name)
    assert torch.equal(indices, oracle[2])
    assert torch.equal(min_is_last, oracle[3])
    rows = slice(None) if case.mask is None else case.mask
    plain_gradient = eager_gradient(case, case.wide).to(dtype)
    assert_within_budget(gradient[rows], plain_gradient[rows], eager_gradient(case, torch.float64)[rows], "gradient")
    assert case.mask is None or not gradient[~case.mask].any()


def test_extremes_and_errors_of_a_response_are_found_in_any_block(plain):
    length = 4 * BLOCK + 9
    for first in (0, 5, BLOCK - 1, BLOCK, 2 * BLOCK + 3, length - 1):
        z = torch.ones(length)
        z[first] = -1.0
        z[min(first + BLOCK, length - 1)] = -1.0  # a later tie and a later error
        for sign, name in ((1, 1), (-1, 2)):
            offsets = torch.tensor([0, 2, 2 + length])
            scores = torch.cat([torch.tensor([-9.0, 9.0]), sign * z])[:, None]
            options = {"positive": 1, "threshold": 0.5, "strict": False, "probabilities": False}
            indices = ops.PRM_SCORES.default(scores, offsets, None, None, **options)[2]
            assert indices[name, 1] == first
            assert indices[3, 1] == (first if sign == 1 else int(first == 0))


@pytest.mark.parametrize("second", [BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("first", [0, 5, BLOCK - 2])
def test_a_nan_is_minimum_and_maximum_from_its_block_on(plain, kind, first, second):
    lengths = (3, 3 * BLOCK, 4)
    case = make_case(plain, lengths, **kind)
    clean = run(case.inputs, case.options)
    case.scores[3 + first] = math.nan
    case.scores[3 + second] = math.nan
    spoilt = ops.PRM_SCORES.default(*case.inputs, **case.options)
    count, argmin, argmax, _ = spoilt[2][:, 1].tolist()
    assert (count, argmin, argmax) == (lengths[1], first, first)
    aggregates = dict(zip(ops.RESPONSES, spoilt[1][:, 1].tolist(), strict=True))
    finite = {name for name, value in aggregates.items() if not math.isnan(value)}
    assert finite == {"last", "last_margin"}
    assert_same_bits([t[:, ::2] for t in spoilt[1:3]], [t[:, ::2] for t in clean[1:3]])


@MASKED
@DTYPES
def test_every_offset_in_memory_gives_the_same_bits_and_nothing_beside_is_read(plain, kind, dtype, masked):
    case = make_case(plain, (5, 0, 40, 1, 3), dtype=dtype, masked=masked, **{**kind, "C": min(kind["C"], 9)})
    expected = run(case.inputs, case.options)
    grads = upstream(expected[:2])
    for offset in range(32):
        layouts = ("column_slice", "contiguous", "transposed")
        boxes = [
            guarded(laid_out(case.scores, layouts[offset % 3], offset)),
            guarded(laid_out(case.offsets, "every_second", (3 * offset) % 32)),
            None if case.mask is None else guarded(laid_out(case.mask, "every_second", (5 * offset) % 32)),
            None if case.weights is None else guarded(laid_out(case.weights, "every_second", (7 * offset) % 32)),
            *(guarded(laid_out(g, "column_slice", (9 * offset) % 32)) for g in grads),
        ]
        tensors = [None if box is None else box.tensor for box in boxes]
        assert_same_bits(run(tensors[:4], case.options, tensors[4:]), expected, f"offset {offset}")
        for box in boxes:
            assert box is None or box.assert_untouched() is None


def test_rows_and_columns_more_than_two_to_the_31_elements_apart(plain):
    case = make_case(plain, (1, 1), C=2, dtype=torch.bfloat16)
    expected = run(case.inputs, case.options)
    far = torch.empty(2**31 + 4096, dtype=torch.bfloat16)
    for strides in ((2**31, 1), (1, 2**31)):
        scores = far.as_strided((2, 2), strides, 5).copy_(case.scores)
        assert_same_bits(run((scores, *case.inputs[1:]), case.options), expected)


def test_a_whole_block_without_steps_is_skipped(plain):
    case = make_case(plain, (7, 30, 0, 2))
    gap = 3 * BLOCK + 5
    scores = torch.cat([case.scores[:9], torch.full((gap, 2), math.nan), case.scores[9:]])
    mask = torch.ones(len(scores), dtype=torch.bool)
    mask[9 : 9 + gap] = False
    offsets = torch.where(case.offsets > 9, case.offsets + gap, case.offsets)
    grads = upstream(run(case.inputs, case.options)[:2])
    wide_steps = torch.cat([grads[0][:, :9], torch.full((3, gap), math.nan), grads[0][:, 9:]], dim=1)
    packed = run(case.inputs, case.options, grads)
    apart = run((scores, offsets, mask, None), case.options, (wide_steps, grads[1]))
    assert_same_bits(apart[1:4], packed[1:4])
    assert torch.equal(apart[0][:, mask], packed[0])
    assert apart[0][:, ~mask].isnan().all()
    assert torch.equal(apart[4][mask], packed[4])
    assert apart[4][~mask].eq(0).all()


def test_saved_indices_of_another_call_lead_nowhere_outside(plain):
    case = make_case(plain, (3, 600, 2))
    outputs = ops.PRM_SCORES.default(*case.inputs, **case.options)
    grads = upstream(outputs[:2])
    expected = ops.PRM_SCORES_BACKWARD.default(*[0 * g for g in grads], *case.inputs, *outputs[:3], **case.options)
    for value in (-1, -(2**63), 2**63 - 1, 600):
        indices = outputs[2].clone()
        indices[1:] = value
        ends = torch.zeros_like(grads[1])
        ends[0:2] = 1.0  # what reaches minimum and maximum, of which there is none
        actual = ops.PRM_SCORES_BACKWARD.default(0 * grads[0], ends, *case.inputs, *outputs[:2], indices, **case.options)
        assert torch.equal(actual, expected)
