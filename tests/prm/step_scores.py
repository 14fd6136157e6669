"""Calls of the Triton ops, an oracle in extended precision, and plain PyTorch, response by response."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ladderkern.prm.ops import INDICES, RESPONSES, STEPS
from ladderkern.testing import assert_within_budget, floats, poisoned_allocations

OPS = torch.ops.ladderkern
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
NAN = float("nan")
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


def small_blocks(monkeypatch):
    """Tiles of 2 x 4 steps."""
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


def forward(case, ops=OPS):
    return ops.prm_scores.triton(*tensors(case), **case.options)


def backward(case, outputs, ops=OPS):
    return ops.prm_scores_backward.triton(*case.grads, *tensors(case), *outputs[:3], **case.options)


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


def assert_right(case, ops=OPS):
    """Both passes within the budget, and no element unwritten; returns (outputs, gradient)."""
    with poisoned_allocations():
        outputs = forward(case, ops)
        gradient = backward(case, outputs, ops)
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
