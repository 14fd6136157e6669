"""Calls of the four ops, an oracle in extended precision for all that they return, and the plain eager chain beside it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ladderkern.discrepancy import ops
from ladderkern.discrepancy.table import DistanceTable
from ladderkern.testing import assert_within_budget, floats, poisoned_allocations

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SMOOTHED = {"ignore_index": -100, "label_smoothing": 0.1}
UNSMOOTHED = {**SMOOTHED, "label_smoothing": 0.0}
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
BOTH = pytest.mark.parametrize("joint", [{}, SMOOTHED], ids=["alone", "joint"])
EACH = pytest.mark.parametrize("joint", [{}, UNSMOOTHED, SMOOTHED], ids=["alone", "joint", "smoothed"])
ALONE = ("discrepancy", "image_top", "image_total", "gradient")
JOINT = ("cross_entropy", "discrepancy", "top", "total", "image_top", "image_total", "gradient")


class Call(SimpleNamespace):
    """logits, labels, table; options: keywords of all ops; joint: those of the joint ones alone, {} for the discrepancy alone;
    grads: of the cross-entropy and of the discrepancy."""

    def other(self, **changes):
        """This call with other tensors."""
        return Call(**{**vars(self), **changes})

    def rows(self, which):
        """This call of some rows."""
        return self.other(logits=self.logits[which], labels=self.labels[which], grads=[g[which] for g in self.grads])

    @property
    def wide(self):
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32

    @property
    def image(self):
        """Which rows are image rows."""
        code = self.labels - self.options["image_start"]
        return (code >= 0) & (code < len(self.table))

    @property
    def counted(self):
        """Which rows have a cross-entropy."""
        return self.labels != self.joint["ignore_index"]

    @property
    def image_logits(self):
        start = self.options["image_start"]
        return self.logits[:, start : start + len(self.table)]


def made(labels, columns, start, dtype, table, options, joint, std, common):
    T = len(labels)
    logits = (std * floats((T, columns), torch.float64, seed=1) + common).to(dtype)
    call = Call(logits=logits, labels=labels, table=table, options={**options, "image_start": start}, joint=joint)
    call.grads = [floats((T,), call.wide, seed=3), floats((T,), call.wide, seed=4)]
    return call


def small(T=6, V=150, N=101, start=4, dtype=torch.float32, table=None, std=3.0, common=0.0, **joint):
    """A call of few rows. Labels: image codes, the first and the last of them among them, the third a text token."""
    table = table or distance_table(N)
    labels = start + torch.randint(N, (T,), generator=torch.Generator().manual_seed(2))
    labels[:2] = torch.tensor([start, start + N - 1])[:T]
    if T > 2 and V > N:
        labels[2] = 0 if start else V - 1
    return made(labels, V, start, dtype, table.data, table.options, joint, std, common)


TABLES = {}


def distance_table(num_codes, metric="mse", storage="table", dtype=torch.float16, dim=5):
    """A table, made once."""
    key = (num_codes, metric, storage, dtype, dim)
    if key not in TABLES:
        TABLES[key] = DistanceTable(floats((num_codes, dim), seed=7), metric, dtype, storage=storage)
    return TABLES[key]


def large(dtype, n, start, after, joint, *, std=1.0, common=0.0, metric=0, table_dtype=torch.float32):
    """A call with every kind of row thrice: image labels (first, last, middle, repeated), text on both sides, the ignored."""
    columns = start + n + after
    image = [start, start + n - 1, start + n // 2, start + n // 2, start + n // 3]
    text = [label for label in (0, start - 1, start + n, columns - 1) if 0 <= label < columns]
    labels = torch.tensor([*image[:2], -100, *text, *image[2:], -100] * 3)
    table = floats((n, 5), seed=3)
    if metric == 0:
        table = floats((n, n), seed=3).to(table_dtype)
        table = table + table.T  # its diagonal is anything but -offset / scale
    options = {"metric": metric, "offset": 1.75, "scale": 0.5}
    return made(labels, columns, start, dtype, table, options, joint, std, common)


def run(call, overload="default"):
    """What an overload of the forward op and that of its backward give: {name: tensor}."""
    forward, backward = (
        (ops.CROSS_ENTROPY_DISCREPANCY, ops.CROSS_ENTROPY_DISCREPANCY_BACKWARD)
        if call.joint
        else (ops.TOKEN_DISCREPANCY, ops.TOKEN_DISCREPANCY_BACKWARD)
    )
    inputs, options = (call.logits, call.labels, call.table), {**call.options, **call.joint}
    rows = getattr(forward, overload)(*inputs, **options)
    grads, saved = (call.grads, rows[1:]) if call.joint else (call.grads[1:], rows)
    gradient = getattr(backward, overload)(*grads, *inputs, *saved, **options)
    return dict(zip(JOINT if call.joint else ALONE, (*rows, gradient), strict=True))


def exact_distances(table, codes, metric, offset, scale, image_start):
    """D[codes] in extended precision.  [T, N]"""
    t = table.double().numpy().astype(np.longdouble)
    if metric == 0:
        distances = t[codes] * np.longdouble(scale) + np.longdouble(offset)
    else:
        squared = sum((column[codes][:, None] - column[None]) ** 2 for column in t.T)
        distances = np.sqrt(squared) if metric == 3 else squared / (t.shape[1] if metric == 1 else 1)
    distances[np.arange(len(codes)), codes] = 0
    return distances


def softmax(x):
    """(p, log p) of a row in extended precision."""
    e = np.exp(x - x.max())
    return e / e.sum(), x - x.max() - np.log(e.sum())


def oracle(call):
    """The losses and the gradient in extended precision, as float64."""
    x = call.logits.double().numpy().astype(np.longdouble)
    grads = [g.double().numpy().astype(np.longdouble) for g in call.grads]
    start, N, V = call.options["image_start"], len(call.table), x.shape[1]
    labels = call.labels.numpy()
    image = call.image.numpy()
    D = exact_distances(call.table, np.where(image, labels - start, 0), **call.options)
    rows = {name: np.zeros(len(x), np.longdouble) for name in ("cross_entropy", "discrepancy")}
    gradient = np.zeros(x.shape, np.longdouble)
    with np.errstate(all="ignore"):
        for i, label in enumerate(labels):
            if call.joint and label != call.joint["ignore_index"]:
                eps = np.longdouble(call.joint["label_smoothing"])
                p, log_p = softmax(x[i] if 0 <= label < V else x[i] * np.nan)
                own = log_p[min(max(label, 0), V - 1)]
                rows["cross_entropy"][i] = -(1 - eps) * own - (eps * log_p.mean() if eps else 0)
                gradient[i] = grads[0][i] * (p - (1 - eps) * (np.arange(V) == label) - eps / V)
            if image[i]:
                p, _ = softmax(x[i, start : start + N])
                rows["discrepancy"][i] = loss = (p * D[i]).sum()
                gradient[i, start : start + N] += grads[1][i] * p * (D[i] - loss)
    return {name: torch.from_numpy(v.astype(np.float64)) for name, v in {**rows, "gradient": gradient}.items()}


def eager(call):
    """The same in plain PyTorch, in the precision that the ops promise, with autograd's gradient."""
    leaf = call.logits.detach().clone().requires_grad_()
    x, part = leaf.to(call.wide), call.other(logits=leaf).image_logits.to(call.wide)
    code = torch.where(call.image, call.labels - call.options["image_start"], 0)
    metric, N = call.options["metric"], len(call.table)
    if metric == 0:
        D = call.table[code].to(call.wide) * call.options["scale"] + call.options["offset"]
    else:
        codes = call.table.to(call.wide)
        D = torch.cdist(codes[code], codes, compute_mode="donot_use_mm_for_euclid_dist")
        D = D if metric == 3 else D**2 / (codes.shape[1] if metric == 1 else 1)
    D = torch.where(code[:, None] == torch.arange(N), 0.0, D)
    out = {"discrepancy": torch.where(call.image, (torch.softmax(part, 1) * D).sum(1), 0.0)}
    value = (out["discrepancy"] * call.grads[1]).sum()
    if call.joint:
        inside = torch.where(call.counted, call.labels.clamp(0, x.shape[1] - 1), call.labels)  # outside there is no value
        out["cross_entropy"] = F.cross_entropy(x, inside, reduction="none", **call.joint)
        value = value + (out["cross_entropy"] * call.grads[0]).sum()
    (out["gradient"],) = torch.autograd.grad(value, leaf)
    return {name: t.detach() for name, t in out.items()}


def assert_right(call, overload="default", what=""):
    """Both passes within the budget, no element unwritten, the logits as they were; returns the results."""
    logits = call.logits.clone()
    with poisoned_allocations():
        actual = run(call, overload)
    plain, exact = eager(call), oracle(call)
    for name, value in plain.items():
        assert_within_budget(actual[name], value, exact[name], f"{what} {name}")
    farthest = 16.0 if overload == "default" else 0.0
    pairs = [("image_", call.image, call.image_logits)]
    if call.joint:
        inside = (call.labels >= 0) & (call.labels < call.logits.shape[1])
        assert actual["total"][call.counted & ~inside].isnan().all()
        pairs.append(("", call.counted & inside, call.logits))
        assert (actual["top"][~call.counted] == 0).all()
        assert (actual["total"][~call.counted] == 0).all()
    assert (actual["image_top"][~call.image] == 0).all()
    assert (actual["image_total"][~call.image] == 0).all()
    for prefix, rows, columns in pairs:
        top, total = (actual[prefix + name][rows] for name in ("top", "total"))
        assert_softmax(top, total, columns[rows].to(call.wide), farthest, f"{what} {prefix}total")
    assert torch.equal(call.logits.view(torch.uint8), logits.view(torch.uint8))
    return actual


def assert_softmax(top, total, x, farthest, what):
    """top is at most ``farthest`` from the largest logit, and total is sum exp(x - top); -inf and 0 of nothing but -inf."""
    largest = x.amax(1)
    empty = largest == -torch.inf
    assert (top[empty] == -torch.inf).all(), what
    assert (total[empty] == 0).all(), what
    finite = largest.isfinite()
    assert ((top - largest)[finite].abs() <= farthest).all(), what
    top, total, x = top[~empty], total[~empty], x[~empty]
    with np.errstate(all="ignore"):
        exact = np.exp(x.numpy().astype(np.longdouble) - top.numpy().astype(np.longdouble)[:, None]).sum(1)
    assert_within_budget(total, torch.exp(x - top[:, None]).sum(1), torch.from_numpy(exact.astype(np.float64)), what)


def assert_same(actual, expected, what=""):
    """Bit by bit."""
    for name, value in expected.items():
        assert torch.equal(actual[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)), f"{what} {name}"
