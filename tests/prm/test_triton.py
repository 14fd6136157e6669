"""The Triton kernels in the interpreter, against an oracle in extended precision and plain PyTorch, response by response."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ladderkern.prm.ops import INDICES, RESPONSES, STEPS
from ladderkern.testing import assert_within_budget, floats, guarded, poisoned_allocations

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf

OPS = torch.ops.ladderkern
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
INF, NAN = float("inf"), float("nan")
LENGTHS = (3, 0, 5, 1, 9, 0)
KINDS = {
    "probability": {"C": 1, "probabilities": True},
    "logit": {"C": 1},
    "pair": {"C": 2},
    "pair, class 0": {"C": 2, "positive": 0},
    "five classes": {"C": 5, "positive": 3},
    "weighted": {"C": 4, "weights": [0.0, 0.25, 1.0, 0.5]},
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
FEW = pytest.mark.parametrize("kind", ["probability", "pair", "weighted"])
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["all steps", "masked"])


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Responses here fit into few blocks; with tiles of 2 x 4 steps they need many, and end in the middle of one."""
    if request.param == "many blocks":
        small_blocks(monkeypatch)


def small_blocks(monkeypatch):
    from ladderkern.prm import kernels

    monkeypatch.setattr(kernels, "_blocks", lambda *_: {"BLOCK_R": 2, "BLOCK_S": 4, "num_warps": 1})


def make(lengths=LENGTHS, dtype=F32, kind="pair", masked=False, spread=2.0, threshold=0.5, strict=False):
    """Inputs of a call. Masked: every third row or so is no step, and holds NaN."""
    options = {"positive": 1, "probabilities": False, **KINDS[kind]}
    C, weights = options.pop("C"), options.pop("weights", None)
    S, R = sum(lengths), len(lengths)
    wide = F64 if dtype == F64 else F32
    x = spread * floats((S, C), F64, seed=1)
    mask = None
    if masked:
        mask = torch.rand(S, generator=torch.Generator().manual_seed(2)) < 0.7
        x[~mask] = NAN
    return SimpleNamespace(
        scores=(x.sigmoid() if options["probabilities"] else x).to(dtype), mask=mask, wide=wide,
        offsets=torch.tensor([0, *itertools.accumulate(lengths)]),
        weights=None if weights is None else torch.tensor(weights, dtype=wide),
        grads=[floats((3, S), wide, seed=3), floats((11, R), wide, seed=4)],
        options={**options, "threshold": threshold, "strict": strict},
    )  # fmt: skip


def tensors(case):
    return case.scores, case.offsets, case.mask, case.weights


def forward(case, overload="triton"):
    return getattr(OPS.prm_scores, overload)(*tensors(case), **case.options)


def backward(case, outputs, overload="triton"):
    return getattr(OPS.prm_scores_backward, overload)(*case.grads, *tensors(case), *outputs[:3], **case.options)


def rows_of(case):
    """The rows that are steps, of each response."""
    offsets = case.offsets.tolist()
    is_step = [True] * len(case.scores) if case.mask is None else case.mask.tolist()
    return [[i for i in range(a, b) if is_step[i]] for a, b in itertools.pairwise(offsets)]


def plain(case, indices):
    """What a user would write, in the arithmetic dtype, with the gradient of autograd: (steps, responses, gradient)."""
    leaf = case.scores.detach().clone().requires_grad_()
    x, positive = leaf.to(case.wide), case.options["positive"]
    if case.options["probabilities"]:
        margin, prob, log_prob = torch.logit(x[:, 0]), x[:, 0], x[:, 0].log()
    else:
        if case.weights is not None:
            margin = torch.logsumexp(x + case.weights.log(), 1) - torch.logsumexp(x + torch.log1p(-case.weights), 1)
        elif x.shape[1] == 1:
            margin = x[:, 0]
        else:
            others = [c for c in range(x.shape[1]) if c != positive]
            margin = x[:, positive] - torch.logsumexp(x[:, others], 1)
        prob, log_prob = torch.sigmoid(margin), F.logsigmoid(margin)
    steps, columns = torch.stack([margin, prob, log_prob]), []
    for rows, place in zip(rows_of(case), indices.T.tolist(), strict=True):
        if not rows:
            columns.append(torch.tensor([NAN] * 4 + [1.0, 0.0] + [NAN] * 5, dtype=case.wide))
            continue
        z, p, log_p = steps[:, rows]
        log_product = log_p.sum()
        product = p.prod() if case.options["probabilities"] else log_product.exp()
        ends = [place[1], place[2], len(rows) - 1]
        sums = [p.mean(), product, log_product, (log_product / len(rows)).exp(), z.mean()]
        columns.append(torch.stack([*p[ends], *sums, *z[ends]]))
    responses = torch.stack(columns, 1) if columns else leaf.new_zeros((11, 0), dtype=case.wide)
    used = sorted(itertools.chain(*rows_of(case)))
    total = (case.grads[0][:, used] * steps[:, used]).sum() + (case.grads[1] * responses).nansum()
    gradient = torch.autograd.grad(total, leaf)[0] if used else torch.zeros_like(leaf)
    steps = torch.full_like(steps, NAN).index_copy(1, torch.tensor(used, dtype=torch.int64), steps[:, used])
    return steps.detach(), responses.detach(), gradient


def log_sum_exp(x):
    """(logsumexp, softmax) of the last dimension; of nothing but -inf, -inf and 0."""
    m = x.max(axis=-1, keepdims=True)
    m = np.where(np.isfinite(m), m, 0)
    total = np.exp(x - m).sum(axis=-1, keepdims=True)
    return (m + np.log(total))[..., 0], np.where(total == 0, 0, np.exp(x - m) / np.where(total == 0, 1, total))


def times(gradient, derivative):
    return np.where(gradient == 0, 0, gradient * derivative)


def extended(tensor):
    return tensor.double().numpy().astype(np.longdouble)


def oracle(case, indices):
    """The formulas of the contract in extended precision: (steps, responses, gradient)."""
    x, S = extended(case.scores), len(case.scores)
    slopes = np.ones(x.shape, np.longdouble)
    if case.options["probabilities"]:
        p, q = x[:, 0], 1 - x[:, 0]
        log_p = np.log(p)
        z = log_p - np.log(q)
    else:
        if x.shape[1] == 1 and case.weights is None:
            z = x[:, 0]
        else:
            w = (
                np.eye(x.shape[1], dtype=np.longdouble)[case.options["positive"]]
                if case.weights is None
                else extended(case.weights)
            )
            right, wrong = (log_sum_exp(np.where(share > 0, x + np.log(share), -np.inf)) for share in (w, 1 - w))
            z, slopes = right[0] - wrong[0], right[1] - wrong[1]
        e = np.exp(-abs(z))
        p, q = np.where(z >= 0, 1, e) / (1 + e), np.where(z >= 0, e, 1) / (1 + e)
        log_p = np.where(z > 0, 0, z) - np.log1p(e)
    steps = np.full((3, S), np.nan, np.longdouble)
    responses = np.full((11, len(indices[0])), np.nan, np.longdouble)
    d = np.zeros(S, np.longdouble)
    g_step, g_all = (extended(grad) for grad in case.grads)
    for r, (rows, place) in enumerate(zip(rows_of(case), indices.T.tolist(), strict=True)):
        n = len(rows)
        responses[4:6, r] = 1, 0
        if n == 0:
            continue
        steps[:, rows] = z[rows], p[rows], log_p[rows]
        ends = np.array(rows)[[place[1], place[2], -1]]
        log_product = log_p[rows].sum()
        product, geometric = np.exp(log_product), np.exp(log_product / n)
        sums = (p[rows].mean(), product, log_product, geometric, z[rows].mean())
        responses[:, r] = (*p[ends], *sums, *z[ends])
        g = g_all[:, r]
        a, b, c = g_step[1] + g[3] / n, g_step[2] + g[5], g_step[0] + g[7] / n
        for i, end in enumerate(ends):
            a[end] += g[i]
            c[end] += g[8 + i]
        for i in rows:
            if case.options["probabilities"]:
                rest = np.prod([p[j] for j in rows if j != i])
                slope = (0 if rest == 0 else 1 if n == 1 else np.inf) if p[i] == 0 else geometric / (n * p[i])
                d[i] = a[i] + times(b[i], 1 / p[i]) + times(c[i], 1 / (p[i] * q[i])) + times(g[4], rest) + times(g[6], slope)
            else:
                d[i] = times(a[i], p[i] * q[i]) + times(b[i], q[i]) + c[i]
                d[i] += times(g[4], product * q[i]) + times(g[6], geometric * q[i] / n)
    gradient = times(d[:, None], slopes)
    return [torch.from_numpy(value.astype(np.float64)) for value in (steps, responses, gradient)]


def expected_places(case, steps):
    """Indices and min_is_last that follow from the steps' own keys."""
    key = steps[1 if case.options["probabilities"] else 0].numpy()
    bound = np.float64(case.options["threshold"])
    if not case.options["probabilities"]:
        bound = np.log(bound) - np.log1p(-bound)
    bound = bound.astype(key.dtype)
    columns, last = [], []
    for rows in rows_of(case):
        keys = key[rows]
        wrong = ~(keys > bound if case.options["strict"] else keys >= bound)
        ends = [int(keys.argmin()), int(keys.argmax())] if rows else [-1, -1]
        columns.append([len(rows), *ends, int(wrong.argmax()) if wrong.any() else -1])
        last.append(bool(rows) and ends[0] == len(rows) - 1)
    return torch.tensor(columns, dtype=torch.int64).reshape(-1, 4).T, torch.tensor(last, dtype=torch.bool)


def assert_right(case):
    """Both passes within the budget, and no element unwritten; returns (outputs, gradient)."""
    with poisoned_allocations():
        outputs = forward(case)
        gradient = backward(case, outputs)
    steps, responses, indices, min_is_last = outputs
    assert indices.shape == (len(INDICES), len(case.offsets) - 1)
    for actual, expected in zip((indices, min_is_last), expected_places(case, steps), strict=True):
        assert torch.equal(actual, expected)
    eager, exact = plain(case, indices), oracle(case, indices)
    for i, name in enumerate(STEPS):
        assert_within_budget(steps[i], eager[0][i], exact[0][i], name)
    for i, name in enumerate(RESPONSES):
        assert_within_budget(responses[i], eager[1][i], exact[1][i], name)
    assert_within_budget(gradient, eager[2], exact[2], "gradient")
    return outputs, gradient


@EACH_KIND
@DTYPES
def test_values_and_gradients(dtype, kind, blocks):
    assert_right(make(dtype=dtype, kind=kind))


@EACH_KIND
@DTYPES
def test_values_and_gradients_where_some_rows_are_no_steps(dtype, kind):
    assert_right(make((17, 0, 33, 5), dtype, kind, masked=True))


SHAPES = [(1,), (0,), (0, 0, 0), (16,), (17, 15), (1,) * 9, (0,) * 9 + (5,), (700, 129)]


@FEW
@MASKED
@pytest.mark.parametrize("lengths", SHAPES, ids=str)
def test_responses_of_any_length(lengths, masked, kind):
    assert_right(make(lengths, BF16, kind, masked))


def test_tiles_follow_the_responses():
    from ladderkern.prm import kernels

    sizes = [(0, 0), (6144, 512), (25_697, 3400), (10**7, 833_000), (10**5, 1)]
    assert [tuple(kernels._blocks(*size).values())[:2] for size in sizes] == [(64, 2), (8, 16), (16, 8), (64, 2), (1, 512)]


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


def test_steps_further_apart_than_32_bits():
    case = make((2, 1), dtype=F16)
    case.scores = torch.empty(2**31 + 200, dtype=F16).as_strided((3, 2), (2**30 + 50, 1)).copy_(case.scores)
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


@EACH_KIND
@MASKED
def test_places_of_64_bits(masked, kind, monkeypatch):
    from ladderkern.prm import kernels

    monkeypatch.setattr(kernels, "_LONG", 0)
    assert_right(make((9, 0, 3, 2), kind=kind, masked=masked))


@FEW
@DTYPES
def test_expanded_and_strided_gradients(dtype, kind):
    case = make(dtype=dtype, kind=kind)
    S, R = len(case.scores), len(LENGTHS)
    case.grads = [torch.tensor(0.7, dtype=case.wide).expand(3, S), torch.tensor(-2.0, dtype=case.wide).expand(11, R)]
    assert_right(case)
    case.grads = [floats((S, 6), case.wide, seed=11).T[::2], floats((R, 11), case.wide, seed=12).T]
    assert_right(case)


@pytest.mark.parametrize("offsets", [[3, 8, 10], [0, 4, 40], [-7, 4, 10], [8, 2, 12], [2**40, -(2**40), 5], [4]], ids=str)
def test_offsets_that_are_no_offsets_never_lead_outside(offsets, blocks):
    case = make((12,), kind="five classes")
    guard = guarded(case.scores)
    case.scores, case.offsets = guard.tensor, torch.tensor(offsets)
    case.grads[1] = floats((11, len(offsets) - 1), seed=5)
    with poisoned_allocations():
        outputs = forward(case)
        gradient = backward(case, outputs)
    clamped = [min(max(offset, 0), 12) for offset in offsets]
    outside = [i for i in range(12) if i < clamped[0] or i >= clamped[-1]]
    if clamped == sorted(clamped):
        assert outputs[0][:, outside].isnan().all()
        assert gradient[outside].eq(0).all()
        inside = [i for i in range(12) if i not in outside]
        assert outputs[0][:, inside].isfinite().all()
    assert gradient.isfinite().all()
    guard.assert_untouched("scores")


@FEW
@DTYPES
def test_nothing_is_written_beside_the_outputs(dtype, kind, monkeypatch):
    from ladderkern.prm import kernels

    small_blocks(monkeypatch)
    made = []

    class Guarding:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, dtype, **options):
            if dtype == torch.bool:
                return torch.empty(shape, dtype=dtype, **options)
            made.append(guarded(torch.zeros(shape, dtype=dtype, **options)))
            return made[-1].tensor

    monkeypatch.setattr(kernels, "torch", Guarding())
    case = make(dtype=dtype, kind=kind)
    backward(case, forward(case))
    assert len(made) == 4
    for i, guard in enumerate(made):
        guard.assert_untouched(f"output {i}")


@EACH_KIND
def test_autograd_twice_from_one_graph(kind):
    case = make(dtype=BF16, kind=kind, masked=True)
    scores = case.scores.nan_to_num(0.5).requires_grad_()
    outputs = OPS.prm_scores.triton(scores, *tensors(case)[1:], **case.options)
    assert [output.requires_grad for output in outputs] == [True, True, False, False]
    for seed in (20, 21):
        case.grads = [floats((3, len(scores)), seed=seed), floats((11, len(LENGTHS)), seed=seed + 5)]
        (gradient,) = torch.autograd.grad(outputs[:2], scores, case.grads, retain_graph=True)
        assert torch.equal(gradient, backward(case, [output.detach() for output in outputs]))


@FEW
@MASKED
def test_opcheck(masked, kind):
    case = make((4, 3), BF16, kind)
    if masked:
        case.mask = torch.ones(7, dtype=torch.bool)  # opcheck takes no NaN for another
    outputs = forward(case)
    torch.library.opcheck(OPS.prm_scores.triton, (case.scores.clone().requires_grad_(), *tensors(case)[1:]), case.options)
    torch.library.opcheck(OPS.prm_scores_backward.triton, (*case.grads, *tensors(case), *outputs[:3]), case.options)


def test_bad_arguments_are_refused_by_name():
    case = make()
    with pytest.raises(TypeError, match="offsets"):
        OPS.prm_scores.triton(case.scores, case.offsets.int(), None, None, **case.options)
    with pytest.raises(ValueError, match="positive"):
        OPS.prm_scores.triton(*tensors(case), **{**case.options, "positive": 2})
    outputs = forward(case)
    with pytest.raises(ValueError, match="grad_steps"):
        OPS.prm_scores_backward.triton(case.grads[0][:2], case.grads[1], *tensors(case), *outputs[:3], **case.options)
