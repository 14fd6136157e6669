"""The Triton kernels in the interpreter, against an oracle in extended precision and plain PyTorch, response by response."""

import itertools

import numpy as np
import pytest
import torch
from step_scores import (
    BF16,
    DTYPES,
    EACH_KIND,
    F32,
    F64,
    FEW,
    MASKED,
    NAN,
    assert_right,
    backward,
    forward,
    make,
    oracle,
    plain,
    rows_of,
    small_blocks,
)

from ladderkern.prm.ops import RESPONSES, STEPS
from ladderkern.testing import assert_within_budget, guarded, poisoned_allocations

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf

INF = float("inf")


@EACH_KIND
@DTYPES
def test_values_and_gradients(dtype, kind, blocks):
    assert_right(make(dtype=dtype, kind=kind))


@EACH_KIND
@DTYPES
def test_values_and_gradients_where_some_rows_are_no_steps(dtype, kind):
    assert_right(make((17, 0, 33, 5), dtype, kind, masked=True))


# Four of 16: what eager PyTorch errs in the mean of a single response, which is the budget, is luck.
SHAPES = [(1,), (0,), (0, 0, 0), (16,) * 4, (17, 15), (1,) * 9, (0,) * 9 + (5,), (700, 129)]


@FEW
@MASKED
@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_responses_of_any_length(lengths, masked, kind):
    assert_right(make(lengths, BF16, kind, masked))


@FEW
def test_no_responses(kind):
    outputs, gradient = assert_right(make((), kind=kind))
    assert [tuple(t.shape) for t in outputs] == [(3, 0), (11, 0), (4, 0), (0,)]
    assert gradient.shape[0] == 0


@FEW
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_the_first_error_goes_by_the_threshold(threshold, strict, kind):
    case = make((9, 3, 4), kind=kind, masked=True, threshold=threshold, strict=strict)
    if kind == "probability":
        case.scores[2:6] = threshold
    if kind == "pair" and threshold == 0.5:
        case.scores[2:6, 1] = case.scores[2:6, 0]  # at the bound itself
    assert_right(case)


@pytest.mark.parametrize(("strict", "expected"), [(False, [2, -1]), (True, [1, 0])])
def test_a_step_at_the_threshold_is_wrong_only_if_strict(strict, expected):
    for kind, scores in (("logit", [1.0, 0.0, -1.0, 0.0]), ("probability", [0.9, 0.5, 0.4, 0.5])):
        case = make((3, 1), kind=kind, strict=strict)
        case.scores = torch.tensor(scores)[:, None]
        assert forward(case)[2][3].tolist() == expected


@FEW
def test_ties_go_to_the_first(kind, blocks):
    case = make((12, 7), kind=kind)
    case.scores[:] = case.scores[:1]
    (_, _, indices, min_is_last), _ = assert_right(case)
    assert indices[1:3].eq(0).all()
    assert not min_is_last.any()


@FEW
def test_masked_rows_do_not_count_whatever_they_hold(kind, blocks):
    case = make((5, 0, 7, 2), kind=kind, masked=True)
    case.grads[0][:, ~case.mask] = NAN
    (steps, _, indices, _), gradient = assert_right(case)
    assert steps[:, ~case.mask].isnan().all()
    assert gradient[~case.mask].eq(0).all()
    kept = make((5, 0, 7, 2), kind=kind)
    kept.scores, kept.grads = case.scores[case.mask], [case.grads[0][:, case.mask], case.grads[1]]
    kept.offsets = torch.tensor([0, *itertools.accumulate(len(rows) for rows in rows_of(case))])
    packed = forward(kept)
    assert torch.equal(steps[:, case.mask], packed[0])
    assert torch.equal(indices, packed[2])


@FEW
def test_a_response_without_a_true_step_is_empty(kind, blocks):
    case = make((5, 4, 6), kind=kind)
    case.mask = torch.ones(15, dtype=torch.bool)
    case.mask[5:9] = False
    (_, responses, indices, min_is_last), _ = assert_right(case)
    assert responses[[4, 5], 1].tolist() == [1.0, 0.0]
    assert indices[:, 1].tolist() == [0, -1, -1, -1]
    assert not min_is_last[1]


@EACH_KIND
def test_nan_stays_in_its_response_and_wins(kind, blocks):
    case = make((6, 9, 4), kind=kind)
    case.scores[[8, 11]] = NAN
    outputs, gradient = assert_right(case)
    assert outputs[2][1:, 1].tolist()[:2] == [2, 2]
    assert outputs[1][:2, 1].isnan().all()
    assert outputs[1][:, [0, 2]].isfinite().all()
    assert gradient[[*range(6), *range(15, 19)]].isfinite().all()


@EACH_KIND
def test_nothing_upstream_is_exactly_nothing_even_where_a_derivative_is_nan(kind, blocks):
    case = make((6, 9, 4), kind=kind)
    case.scores[[8, 11]] = NAN
    if case.options["probabilities"]:
        case.scores[0], case.scores[16] = 0.0, 1.0
    for grad in case.grads:
        grad.zero_()
    assert backward(case, forward(case)).eq(0).all()


@pytest.mark.parametrize("kind", ["logit", "pair", "five classes", "weighted"])
def test_infinite_logits(kind, blocks):
    case = make((5, 6, 4, 7), kind=kind)
    case.scores[1, 0] = -INF  # one column beside finite ones: a margin of one sign, or a class less
    case.scores[6, -1] = INF
    case.scores[12, :] = -INF
    case.scores[17, 0] = -200.0
    case.scores[18, 0] = 200.0
    for grad in case.grads:
        grad[:, -1] = 0.0
    with poisoned_allocations():
        outputs = forward(case)
    eager, exact = plain(case, outputs[2]), oracle(case, outputs[2])
    for i, name in enumerate(STEPS):
        assert_within_budget(outputs[0][i], eager[0][i], exact[0][i], name)
    for i, name in enumerate(RESPONSES):
        assert_within_budget(outputs[1][i], eager[1][i], exact[1][i], name)


def test_probabilities_of_zero_and_one(blocks):
    case = make((4, 5, 3, 1, 2, 1), kind="probability")
    case.scores[1] = 0.0  # one zero: the others' gradient of the product is 0
    case.scores[[5, 7]] = 0.0  # two zeros: all are 0
    case.scores[10] = 1.0
    case.scores[12] = 0.0  # alone
    for grad in case.grads:  # no upstream where a derivative is infinite
        grad[0 if len(grad) == 3 else 7] = 0.0
    case.grads[0][2] = 0.0
    case.grads[1][[5, 8, 9, 10]] = 0.0
    (_, responses, _, _), gradient = assert_right(case)
    assert responses[4, [0, 1, 3]].eq(0).all()
    assert gradient[1].isinf()  # of the geometric mean at its one zero
    assert gradient[12].isfinite()


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_sums_do_not_drift_over_a_long_response(dtype):
    case = make((100_000, 3), dtype=dtype, kind="logit")
    case.scores[:100_000] = 2.3
    steps, responses, _, _ = forward(case)
    z, p, log_p = (value.astype(np.longdouble) for value in steps[:, 0].numpy())
    exact = np.array([p, log_p * 100_000, z])
    error = abs(responses[[3, 5, 7], 0].numpy() / exact - 1)
    levels = np.log2(512) + 2  # a tree over the lanes; what two-sums lose over the blocks does not grow with their number
    assert (error <= levels * torch.finfo(case.wide).eps).all()


@EACH_KIND
@DTYPES
def test_any_strides_and_nothing_read_beside_the_inputs(dtype, kind, monkeypatch):
    small_blocks(monkeypatch)
    case = make((5, 0, 7, 9), dtype=dtype, kind=kind, masked=True)
    C = case.scores.shape[1]
    memory = {
        "scores": guarded(torch.zeros(C + 2, 43, dtype=dtype)[1 : C + 1, 1::2].T.copy_(case.scores)),
        "offsets": guarded(torch.stack([case.offsets] * 3, 1)[:, 1]),
        "mask": guarded(torch.stack([case.mask.to(torch.uint8)] * 2, 1)[:, 0]),
    }
    case.scores, case.offsets = memory["scores"].tensor, memory["offsets"].tensor
    case.mask = memory["mask"].tensor.view(torch.bool)
    if case.weights is not None:
        memory["weights"] = guarded(torch.stack([case.weights] * 2, 1)[:, 1])
        case.weights = memory["weights"].tensor
    assert case.scores.stride()[0] == 2
    assert_right(case)
    for name, guard in memory.items():
        guard.assert_untouched(name)


def test_repeated_scores(blocks):
    case = make((5, 7), kind="five classes")
    case.scores = case.scores[:1].expand(12, 5)
    assert_right(case)


@DTYPES
@pytest.mark.parametrize("kind", ["logit", "probability"])
def test_every_step_keeps_its_digits_at_both_ends(kind, dtype):
    case = make((24,), dtype=dtype, kind=kind)
    ends = torch.tensor([2.0**i for i in range(-5, 7)], dtype=F64)
    if kind == "probability":
        ends = 2.0 ** -torch.arange(1, 13, dtype=F64) / 3
        case.scores = torch.cat([ends, 1 - ends])[:, None].to(dtype)
    else:
        case.scores = torch.cat([ends, -ends])[:, None].to(dtype)
    outputs = forward(case)
    eager, exact = plain(case, outputs[2])[0], oracle(case, outputs[2])[0]
    for i, name in enumerate(STEPS):
        for j in range(24):  # each by itself: the largest of them grants no budget to the others
            assert_within_budget(outputs[0][i, j], eager[i, j], exact[i, j], f"{name} {j}")
