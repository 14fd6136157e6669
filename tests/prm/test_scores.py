"""score_steps, score_probs and score_masked: every field against an oracle, and errors that name the argument."""

import math

import pytest
import torch

from ladderkern import prm
from ladderkern.prm.ops import RESPONSES, STEPS
from ladderkern.testing import assert_within_budget, floats, laid_out

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAN, INF = math.nan, math.inf


def assert_as_eager(case, outputs):
    """Every output within the budget of plain PyTorch in the outputs' dtype; indices and flags equal."""
    oracle, plain = case.oracle(), case.eager(outputs[0].dtype)
    for packed, names in enumerate((STEPS, RESPONSES)):
        for i, name in enumerate(names):
            assert_within_budget(outputs[packed][i], plain[packed][i], oracle[packed][i], name)
    assert torch.equal(outputs[2], oracle[2])
    assert torch.equal(outputs[3], oracle[3])


@pytest.mark.parametrize("masked", [False, True], ids=["packed", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_field_is_as_in_plain_pytorch(plain, backend, kind, dtype, masked):
    case = plain.make_case(dtype=dtype, masked=masked, **kind)
    assert_as_eager(case, case.score())


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 1000])
def test_any_number_of_steps(plain, backend, kind, steps):
    others = (7, 3, 0, 5, 9, 1) * 10  # so that the budget does not hang on plain PyTorch's luck with one response
    for lengths in ((steps, *others), (*others, 0, steps, 0), (1,) * steps + others):
        case = plain.make_case(lengths, seed=steps, **kind)
        assert_as_eager(case, case.score())


@pytest.mark.parametrize("layout", ["transposed", "column_slice", "every_second"])
def test_any_strides(plain, backend, kind, layout):
    case = plain.make_case(layout=layout, offset=3, **kind)
    case.offsets = laid_out(case.offsets, "every_second", 1)
    assert_as_eager(case, case.score())


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
def test_no_steps_at_all(plain, backend, kind, lengths):
    case = plain.make_case(lengths, **kind)
    case.scores.requires_grad_()
    outputs = case.score()
    assert_as_eager(case, outputs)
    assert outputs[0].shape == (3, 0)
    (outputs[0].sum() + outputs[1].nansum()).backward()
    assert case.scores.grad.shape == case.scores.shape


def test_names_of_the_fields(plain, backend):
    case = plain.make_case()
    s = prm.score_steps(case.scores, case.offsets)
    steps, responses, indices, min_is_last = case.score()
    named = dict(zip((*STEPS, *RESPONSES), (*steps, *responses), strict=True))
    named |= dict(zip(("count", "argmin", "argmax", "first_error"), indices, strict=True), min_is_last=min_is_last)
    assert set(named) == set(s._fields)
    for name, expected in named.items():
        torch.testing.assert_close(getattr(s, name), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_first_error_for_any_threshold(plain, backend, kind, threshold, strict):
    case = plain.make_case(threshold=threshold, strict=strict, **kind)
    assert torch.equal(case.score()[2], case.oracle()[2])


def test_a_step_on_the_threshold_is_wrong_only_if_strict(backend):
    logits, prob, offsets = torch.zeros(2, 2), torch.tensor([0.5, 0.25]), torch.tensor([0, 1, 2])
    for strict, expected in ((False, [-1, -1]), (True, [0, 0])):
        assert prm.score_steps(logits, offsets, strict=strict).first_error.tolist() == expected
    for strict, expected in ((False, [-1, -1]), (True, [-1, 0])):
        assert prm.score_probs(prob, offsets, threshold=0.25, strict=strict).first_error.tolist() == expected


def test_ties_go_to_the_first(backend):
    z = torch.tensor([1.0, -1.0, 2.0, -1.0, 2.0, 3.0, 3.0, 3.0])
    for s in (
        prm.score_steps(z, torch.tensor([0, 5, 8])),
        prm.score_steps(torch.stack([-z / 2, z / 2], 1), torch.tensor([0, 5, 8])),
        prm.score_probs(torch.sigmoid(z), torch.tensor([0, 5, 8])),
    ):
        assert s.argmin.tolist() == [1, 0]
        assert s.argmax.tolist() == [2, 0]
        assert s.min_is_last.tolist() == [False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saturated_steps_do_not_tie(backend, dtype):
    gaps = torch.tensor([20.0, 19.0, 25.0, 30.0, 28.0])
    logits = torch.stack([torch.zeros(5), gaps], dim=1).to(dtype)
    s = prm.score_steps(logits, torch.tensor([0, 3, 5]))
    assert s.prob.tolist() == [1.0] * 5
    assert s.margin.tolist() == gaps.tolist()
    assert (s.argmin.tolist(), s.argmax.tolist()) == ([1, 1], [2, 0])
    assert (s.min_margin.tolist(), s.max_margin.tolist()) == ([19.0, 28.0], [25.0, 30.0])
    assert s.log_product[0] < s.log_product[1] < 0


def test_log_product_does_not_underflow(backend):
    s = prm.score_steps(torch.full((300,), -5.0), torch.tensor([0, 300]))
    assert s.product.item() == 0.0
    expected = 300 * torch.nn.functional.logsigmoid(torch.tensor(-5.0, dtype=torch.float64))
    torch.testing.assert_close(s.log_product[0].double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(s.geometric_mean[0].double(), (expected / 300).exp(), rtol=1e-6, atol=0)


def test_sums_of_many_steps(plain, backend, kind):
    case = plain.make_case(
        (100_000, 1, 100_001), **{**kind, "C": min(kind["C"], 3), "positive": min(kind.get("positive", 1), 2)}
    )
    outputs, oracle = case.score(), case.oracle()
    for name in ("mean", "log_product", "geometric_mean", "mean_margin"):
        # the bound of the interface for 10^5 steps
        torch.testing.assert_close(plain.field(outputs, name).double(), plain.field(oracle, name), rtol=3e-5, atol=0)


# ------------------------------------------------------------------------------------------------------------ special values


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_nan_step_stays_inside_its_response(plain, backend, kind, at):
    case = plain.make_case((4, 5, 3), **kind)
    clean = torch.ops.ladderkern.prm_scores(*case.inputs, **case.options)
    case.scores[4 + at] = NAN
    spoilt = torch.ops.ladderkern.prm_scores(*case.inputs, **case.options)
    for a, b in zip(clean[1:3], spoilt[1:3], strict=True):
        assert torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    assert spoilt[0][:, 4 + at].isnan().all()
    aggregates = dict(zip(RESPONSES, spoilt[1][:, 1].tolist(), strict=True))
    finite = {name for name, value in aggregates.items() if not math.isnan(value)}
    assert finite == ({"last", "last_margin"} if at != 4 else set())
    first_error = clean[2][3, 1].item()
    assert spoilt[2][:, 1].tolist() == [5, at, at, at if first_error < 0 else min(at, first_error)]
    assert spoilt[3][1] == (at == 4)


def test_the_first_nan_of_two_is_minimum_and_maximum(plain, backend):
    logits = torch.tensor([1.0, NAN, -5.0, NAN, 7.0])
    options = plain.make_case().options
    indices = torch.ops.ladderkern.prm_scores(logits[:, None], torch.tensor([0, 5]), None, None, **options)[2]
    assert indices[:, 0].tolist() == [5, 1, 1, 1]


def test_nan_scores_are_an_error(plain, backend, kind):
    case = plain.make_case(**kind)
    case.scores[5] = NAN
    with pytest.raises(ValueError, match=r"scores .* got nan at row 5"):
        case.score()


def test_infinite_logits_that_leave_no_margin_are_an_error(backend):
    logits = torch.zeros(4, 2)
    logits[2] = -INF
    with pytest.raises(ValueError, match=r"logits .* row 2"):
        prm.score_steps(logits, torch.tensor([0, 1, 4]))


def test_infinite_margins(backend):
    s = prm.score_steps(torch.tensor([[-INF, 0.0], [0.0, -INF], [0.0, 0.0]]), torch.tensor([0, 1, 3]))
    assert s.margin.tolist() == [INF, -INF, 0.0]
    assert s.prob.tolist() == [1.0, 0.0, 0.5]
    assert s.log_prob[:2].tolist() == [0.0, -INF]
    assert s.product.tolist() == [1.0, 0.0]
    assert s.geometric_mean.tolist() == [1.0, 0.0]
    assert s.mean_margin.tolist() == [INF, -INF]


@pytest.mark.parametrize("bad", [-0.1, 1.5, -INF, INF, NAN])
def test_a_number_that_is_no_probability_is_an_error(backend, bad):
    prob = torch.full((6,), 0.5)
    prob[3] = bad
    for offsets in ([0, 6], [0, 0, 3, 4, 4, 6]):
        with pytest.raises(ValueError, match=r"prob .* row 3"):
            prm.score_probs(prob, torch.tensor(offsets))


def test_probabilities_of_exactly_0_and_1(backend):
    s = prm.score_probs(torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0, 1.0]), torch.tensor([0, 2, 4, 6]))
    assert s.margin.tolist() == [-INF, 0.0, INF, 0.0, -INF, INF]
    assert s.log_prob[[0, 2, 4, 5]].tolist() == [-INF, 0.0, -INF, 0.0]
    assert s.product.tolist() == [0.0, 0.5, 0.0]
    assert s.log_product.tolist()[::2] == [-INF, -INF]
    assert s.mean_margin[:2].tolist() == [-INF, INF]
    assert s.mean_margin[2].isnan()
    assert (s.argmin.tolist(), s.argmax.tolist()) == ([0, 1, 0], [1, 0, 1])


def test_weights_all_on_one_side(backend):
    logits = floats((4, 3)).requires_grad_()
    s = prm.score_steps(logits, torch.tensor([0, 4]), class_weights=(1, 1, 1))
    assert (s.prob == 1).all()
    (s.product + s.log_product + s.mean + s.min).sum().backward()
    assert not logits.grad.any()


# ------------------------------------------------------------------------------------------------------------ padded tokens


def assert_same(backend, actual, expected):
    """Bitwise in the native backend, wherever a step lies; torch's functions differ between vectors and their tails."""
    exact = {"rtol": 0, "atol": 0} if backend == "native" else {}
    torch.testing.assert_close(actual, expected, equal_nan=True, **exact)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("C", [1, 2, 5])
def test_padded_tokens_equal_packed_steps(plain, backend, side, C):
    logits, mask, packed, offsets = plain.padded(side, C)
    if C == 1:
        logits, packed = logits[..., 0], packed[..., 0]
    logits.requires_grad_()
    packed.requires_grad_()
    a, b = prm.score_masked(logits, mask), prm.score_steps(packed, offsets)
    for name, actual, expected in zip(a._fields, a, b, strict=True):
        if name in STEPS:
            assert actual.shape == mask.shape
            assert actual[~mask].isnan().all()
            actual = actual[mask]
        assert_same(backend, actual, expected)
    (a.product.sum() + a.margin[mask].sum()).backward()
    (b.product.sum() + b.margin.sum()).backward()
    assert_same(backend, logits.grad[mask], packed.grad)
    assert not logits.grad[~mask].any()


@pytest.mark.parametrize("shape", [(0, 5, 2), (3, 0, 2), (0, 0, 2), (0, 5)])
def test_masks_without_tokens(backend, shape):
    s = prm.score_masked(torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool))
    assert s.prob.shape == shape[:2]
    assert s.count.tolist() == [0] * shape[0]


def test_masked_logits_in_any_layout(plain, backend):
    logits, mask, packed, offsets = plain.padded("left", 4)
    wide = torch.full((mask.shape[1] + 3, mask.shape[0], 4), NAN)
    wide[1:-2] = logits.transpose(0, 1)
    s = prm.score_masked(wide.transpose(0, 1)[:, 1:-2], mask, positive=2)
    assert_same(backend, s.margin[mask], prm.score_steps(packed, offsets, positive=2).margin)


# ------------------------------------------------------------------------------------------------------------------ bad input

LOGITS, OFFSETS, MASK = torch.zeros(6, 3), torch.tensor([0, 2, 6]), torch.ones(2, 3, dtype=torch.bool)
BAD = [
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, torch.tensor([0, 4, 2, 6]))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, torch.tensor([1, 6]))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, torch.tensor([0, 5]))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, torch.tensor([0, 7]))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, torch.tensor([-1, 6]))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, torch.zeros(0, dtype=torch.int64))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS[None])),
    ("offsets", TypeError, lambda: prm.score_steps(LOGITS, OFFSETS.float())),
    ("offsets", TypeError, lambda: prm.score_steps(LOGITS, OFFSETS.bool())),
    ("offsets", TypeError, lambda: prm.score_steps(LOGITS, OFFSETS.to(torch.complex64))),
    ("offsets", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS.to("meta"))),
    ("logits", TypeError, lambda: prm.score_steps(LOGITS.long(), OFFSETS)),
    ("logits", ValueError, lambda: prm.score_steps(LOGITS[None], OFFSETS)),
    ("logits", ValueError, lambda: prm.score_steps(LOGITS[:, :0], OFFSETS)),
    ("positive", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, positive=3)),
    ("positive", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, positive=-1)),
    ("positive", ValueError, lambda: prm.score_steps(LOGITS[:, 0], OFFSETS, positive=2)),
    ("threshold", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, threshold=1.1)),
    ("threshold", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, threshold=NAN)),
    ("class_weights", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, class_weights=(0, 1))),
    ("class_weights", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, class_weights=(0, -0.5, 1))),
    ("class_weights", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, class_weights=torch.tensor([0, 2, 1]))),
    ("class_weights", ValueError, lambda: prm.score_steps(LOGITS, OFFSETS, class_weights=torch.ones(3, device="meta"))),
    ("class_weights", ValueError, lambda: prm.score_steps(LOGITS[:, :1], OFFSETS, class_weights=(1,))),
    ("prob", TypeError, lambda: prm.score_probs(LOGITS[:, 0].long(), OFFSETS)),
    ("prob", ValueError, lambda: prm.score_probs(LOGITS, OFFSETS)),
    ("mask", TypeError, lambda: prm.score_masked(LOGITS.view(2, 3, 3), MASK.long())),
    ("mask", ValueError, lambda: prm.score_masked(LOGITS.view(2, 3, 3), MASK[0])),
    ("mask", ValueError, lambda: prm.score_masked(LOGITS.view(2, 3, 3), MASK.to("meta"))),
    ("logits", ValueError, lambda: prm.score_masked(LOGITS.view(3, 2, 3), MASK)),
    ("logits", TypeError, lambda: prm.score_masked(LOGITS.view(2, 3, 3).long(), MASK)),
]


@pytest.mark.parametrize(("name", "error", "call"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(backend, name, error, call):
    with pytest.raises(error, match=f"^{name} "):
        call()
