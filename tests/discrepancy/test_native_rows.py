"""The native rows of the four ops against extended precision: dtypes, sizes, layouts, alignment, guard bands, odd values."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ladderkern.discrepancy import ops
from ladderkern.testing import assert_within_budget, floats, guarded, laid_out, poisoned_allocations

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
METRICS = {"table": 0, "mse": 1, "sqeuclidean": 2, "euclidean": 3}
OFFSET, SCALE = 1.75, 0.5  # of the centred table
SMOOTHING = 0.1

pytestmark = pytest.mark.usefixtures("native")


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def keywords(metric, start, joint=False):
    common = {"metric": METRICS[metric], "offset": OFFSET, "scale": SCALE, "image_start": start}
    return {**common, "ignore_index": -100, "label_smoothing": SMOOTHING} if joint else common


def make_table(metric, n, dtype=torch.float32):
    if metric != "table":
        return floats((n, 5), seed=3)
    table = floats((n, n), seed=3).to(dtype)
    return table + table.T  # its diagonal is anything but -offset / scale


def make_labels(start, n, columns):
    """Image labels (first, last, middle, repeated), text labels on both sides, and the ignored one."""
    image = [start, start + n - 1, start + n // 2, start + n // 2, start + n // 3]
    text = [label for label in (0, start - 1, start + n, columns - 1) if 0 <= label < columns]
    return torch.tensor([*image[:2], -100, *text, *image[2:], -100] * 3)


def exact_distances(table, metric, rows):
    """D[rows] in extended precision."""
    t = table.double().numpy().astype(np.longdouble)
    if metric == "table":
        distances = t[rows] * SCALE + OFFSET
    else:
        distances = ((t[rows][:, None] - t[None]) ** 2).sum(-1)
        distances = distances / t.shape[1] if metric == "mse" else np.sqrt(distances) if metric == "euclidean" else distances
    distances[np.arange(len(rows)), rows] = 0
    return distances


def exact(logits, labels, table, metric, start, grads, joint):
    """Everything that the forward and the backward op return, in extended precision, then float64."""
    x, y = logits.double().numpy().astype(np.longdouble), labels.numpy()
    g_ce, g_d = (g.double().numpy().astype(np.longdouble) for g in grads)
    T, V, N = *x.shape, table.shape[0]
    out = {name: np.zeros(T, np.longdouble) for name in ("ce", "disc", "lse", "image_lse")}
    grad = np.zeros_like(x)

    def log_sum(v):
        top = v.max()
        return top + np.log(np.exp(v - top).sum())

    for i in range(T):
        code = y[i] - start
        if joint and y[i] != -100:
            lse = out["lse"][i] = log_sum(x[i])
            own = (1 - SMOOTHING) * (x[i, y[i]] - lse)
            out["ce"][i] = -own - SMOOTHING * (x[i] - lse).mean()
            grad[i] += g_ce[i] * (np.exp(x[i] - lse) - SMOOTHING / V)
            grad[i, y[i]] -= g_ce[i] * (1 - SMOOTHING)
        if 0 <= code < N:
            part = x[i, start : start + N]
            lse = out["image_lse"][i] = log_sum(part)
            p, distances = np.exp(part - lse), exact_distances(table, metric, np.array([code]))[0]
            out["disc"][i] = (p * distances).sum()
            grad[i, start : start + N] += g_d[i] * p * (distances - out["disc"][i])
    return {name: torch.from_numpy(v.astype(np.float64)) for name, v in {**out, "grad": grad}.items()}


def eager(logits, labels, table, metric, start, grads, joint):
    """The same in plain PyTorch, in the precision that the ops promise, with autograd's gradient."""
    W, N = wide(logits.dtype), table.shape[0]
    leaf = logits.detach().clone().requires_grad_()
    x = leaf.to(W)
    code = labels - start
    image = (code >= 0) & (code < N)
    code = torch.where(image, code, 0)
    part = x[:, start : start + N]
    if metric == "table":
        distances = table[code].to(W) * SCALE + OFFSET
    else:
        distances = torch.cdist(table[code].to(W), table.to(W), compute_mode="donot_use_mm_for_euclid_dist")
        distances = distances if metric == "euclidean" else distances**2 / (table.shape[1] if metric == "mse" else 1)
    distances = torch.where(code[:, None] == torch.arange(N), 0.0, distances)
    disc = torch.where(image, (torch.softmax(part, 1) * distances).sum(1), 0.0)
    kept = labels != -100
    ce = F.cross_entropy(x, labels, label_smoothing=SMOOTHING, reduction="none")
    out = {"ce": ce, "disc": disc, "lse": torch.where(kept, x.logsumexp(1), 0.0)}
    out["image_lse"] = torch.where(image, part.logsumexp(1), 0.0)
    total = (disc * grads[1]).sum() + ((ce * grads[0]).sum() if joint else 0.0)
    (out["grad"],) = torch.autograd.grad(total, leaf)
    return {name: t.detach() for name, t in out.items()}


def run(logits, labels, table, metric, start, grads, joint):
    """The same by the default ops."""
    options = keywords(metric, start, joint)
    if joint:
        ce, disc, lse, image_lse = ops.CROSS_ENTROPY_DISCREPANCY.default(logits, labels, table, **options)
        back = partial(ops.CROSS_ENTROPY_DISCREPANCY_BACKWARD.default, *grads, logits, labels, table)
        grad = back(disc, lse, image_lse, **options)
        return {"ce": ce, "disc": disc, "lse": lse, "image_lse": image_lse, "grad": grad}
    disc, image_lse = ops.TOKEN_DISCREPANCY.default(logits, labels, table, **options)
    grad = ops.TOKEN_DISCREPANCY_BACKWARD.default(grads[1], logits, labels, table, disc, image_lse, **options)
    return {"disc": disc, "image_lse": image_lse, "grad": grad}


def make_case(dtype, n, start, after, *, std=1.0, common=0.0, metric="table", table_dtype=torch.float32):
    columns = start + n + after
    labels = make_labels(start, n, columns)
    logits = (floats((len(labels), columns), torch.float64, seed=1) * std + common).to(dtype)
    grads = [floats((len(labels),), wide(dtype), seed=seed) for seed in (4, 5)]
    return logits, labels, make_table(metric, n, table_dtype), metric, start, grads


def check(case, joint, what=""):
    with poisoned_allocations():
        actual = run(*case, joint)
    plain, oracle = eager(*case, joint), exact(*case, joint)
    for name, value in actual.items():
        assert_within_budget(value, plain[name], oracle[name], f"{what} {name}")
    return actual


def assert_same(actual, expected, what=""):
    for name, value in expected.items():
        assert torch.equal(actual[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)), f"{what} {name}"


JOINT = pytest.mark.parametrize("joint", [False, True], ids=["alone", "joint"])
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@JOINT
@DTYPES
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 63, 1000, 1024, 1025, 2500])
def test_every_size_is_within_budget(dtype, n, joint):
    for start, after in ((0, 0), (4, 3), (37, 1100)):
        if start + n + after > 1 or not joint:
            check(make_case(dtype, n, start, after), joint, f"start {start}, after {after}")


@JOINT
@DTYPES
@pytest.mark.parametrize(("std", "common"), [(0.1, 0.0), (5.0, 0.0), (15.0, 0.0), (1.0, 1e4), (1.0, -1e4)], ids=str)
def test_sharp_and_shifted_logits_are_within_budget(dtype, std, common, joint):
    check(make_case(dtype, 1030, 4, 2000, std=std, common=common), joint)


@JOINT
@DTYPES
@pytest.mark.parametrize("table_dtype", FLOATS, ids=str)
def test_every_dtype_of_the_table_is_within_budget(dtype, table_dtype, joint):
    check(make_case(dtype, 300, 4, 5, table_dtype=table_dtype), joint)


@JOINT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("metric", [name for name in METRICS if name != "table"])
def test_distances_from_the_codebook_are_within_budget(dtype, metric, joint):
    for n in (1, 17, 64, 1100):
        check(make_case(dtype, n, 4, 5, metric=metric), joint, f"N {n}")


@JOINT
@pytest.mark.parametrize("share", [-30.0, -300.0, 30.0])
def test_image_columns_far_below_or_above_the_text_keep_their_softmax(share, joint):
    for dtype in FLOATS:
        case = make_case(dtype, 100, 20, 50)
        case[0][:, 20:120] += share
        check(case, joint, f"{dtype}")


@DTYPES
def test_every_offset_and_row_stride_gives_the_contiguous_result_and_reads_nothing_beside(dtype):
    for offset, joint in product(range(32), (False, True)):
        logits, labels, table, metric, start, grads = make_case(dtype, 45, 4, 6, table_dtype=torch.float16)
        expected = run(logits, labels, table, metric, start, grads, joint)
        boxes = [
            guarded(laid_out(logits, "column_slice", offset)),
            guarded(laid_out(labels, "every_second", (3 * offset) % 32)),
            guarded(laid_out(table, "contiguous", (5 * offset) % 32)),
            *(guarded(laid_out(g, "every_second", (7 * offset) % 32)) for g in grads),
        ]
        x, y, t, *g = (box.tensor for box in boxes)
        assert_same(run(x, y, t, metric, start, g, joint), expected, f"offset {offset}")
        for box in boxes:
            box.assert_untouched()


@JOINT
@DTYPES
def test_an_expanded_grad_output_is_read_as_such(dtype, joint):
    logits, labels, table, metric, start, grads = make_case(dtype, 45, 4, 6)
    expanded = [g[:1].expand(len(labels)) for g in grads]
    expected = run(logits, labels, table, metric, start, [g.contiguous() for g in expanded], joint)
    assert_same(run(logits, labels, table, metric, start, expanded, joint), expected)


@DTYPES
def test_a_slice_of_the_image_columns_gives_what_the_whole_row_gives(dtype):
    logits, labels, table, metric, start, grads = make_case(dtype, 1100, 4, 600)
    whole = run(logits, labels, table, metric, start, grads, False)
    part = run(logits[:, 4:1104], labels - 4, table, metric, 0, grads, False)
    assert_same({**whole, "grad": whole["grad"][:, 4:1104]}, part)
    assert whole["grad"][:, :4].eq(0).all()
    assert whole["grad"][:, 1104:].eq(0).all()


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 70), (torch.bfloat16, 140)], ids=str)
def test_the_zeros_of_a_gradient_larger_than_the_caches_are_all_written(dtype, rows):
    columns, start, n = 65537, 4099, 45  # odd: the runs of zeros start at every alignment
    assert rows * columns * dtype.itemsize >= 16 << 20
    logits = floats((rows, columns), dtype, seed=1)
    labels = start + torch.arange(rows) % n
    labels[::3] = 7
    case = (make_table("table", n), "table")
    grads = [None, floats((rows,), seed=4)]
    with poisoned_allocations():
        whole = run(logits, labels, *case, start, grads, False)["grad"]
    part = run(logits[:, start : start + n], labels - start, *case, 0, grads, False)["grad"]
    assert torch.equal(whole[:, start : start + n], part)
    assert whole[::3].eq(0).all()
    assert whole[:, :start].eq(0).all()
    assert whole[:, start + n :].eq(0).all()


@JOINT
def test_rows_of_text_have_no_discrepancy_whatever_they_hold(joint):
    logits, labels, table, metric, start, grads = make_case(torch.float32, 45, 4, 6)
    image = (labels >= 4) & (labels < 49)
    skipped = ~image if not joint else labels == -100
    logits[skipped] = float("nan")
    grads = [torch.where(skipped, float("nan"), g) for g in grads]
    actual = run(logits, labels, table, metric, start, grads, joint)
    for name, value in actual.items():
        assert value[skipped].eq(0).all(), name
        assert value.isfinite().all(), name
    assert actual["disc"][~image].eq(0).all()


@JOINT
@DTYPES
def test_columns_of_minus_infinity_get_no_gradient_from_the_discrepancy(dtype, joint):
    logits, labels, table, metric, start, grads = make_case(dtype, 1100, 4, 6)
    masked = torch.arange(logits.shape[1]) % 3 == 1
    masked[labels[labels >= 0]] = False
    logits[:, masked] = float("-inf")
    if joint:
        grads[0].zero_()  # a smoothed target on a masked column is an infinite loss
    actual = run(logits, labels, table, metric, start, grads, joint)
    assert actual["grad"][:, masked].eq(0).all()
    assert actual["disc"].isfinite().all()
    oracle = exact(logits, labels, table, metric, start, grads, False)
    plain = eager(logits, labels, table, metric, start, grads, False)
    for name in ("disc", "grad"):
        assert_within_budget(actual[name], plain[name], oracle[name], name)


def test_a_whole_block_of_minus_infinity_first_is_no_harm():
    case = make_case(torch.float32, 2500, 0, 0)
    case[0][:, :1200] = float("-inf")
    case[1][0] = 1300
    check(case, False)


@DTYPES
def test_nan_and_rows_without_a_finite_logit_stay_in_their_rows(dtype):
    logits, labels, table, metric, start, grads = make_case(dtype, 1100, 4, 6)
    clean = run(logits, labels, table, metric, start, grads, False)
    logits = logits.clone()
    logits[0, 30] = float("nan")
    logits[1, 4:1104] = float("-inf")
    logits[-2, 7] = float("inf")
    spoilt = run(logits, labels, table, metric, start, grads, False)
    for row in (0, 1, len(labels) - 2):
        assert spoilt["disc"][row].isnan()
        assert spoilt["grad"][row, 4:1104].isnan().all()
        assert spoilt["grad"][row, :4].eq(0).all()
    others = [i for i in range(len(labels)) if i not in (0, 1, len(labels) - 2)]
    assert_same({k: v[others] for k, v in spoilt.items()}, {k: v[others] for k, v in clean.items()})


@DTYPES
def test_a_label_outside_the_vocabulary_is_nan_in_its_row_alone(dtype):
    logits, labels, table, metric, start, grads = make_case(dtype, 45, 4, 6)
    clean = run(logits, labels, table, metric, start, grads, True)
    text = 3
    assert not 4 <= labels[text] < 49
    for bad in (-1, logits.shape[1], 2**40):
        labels[text] = bad
        spoilt = run(logits, labels, table, metric, start, grads, True)
        assert spoilt["ce"][text].isnan()
        assert spoilt["grad"][text].isnan().all()
        others = [i for i in range(len(labels)) if i != text]
        assert_same({k: v[others] for k, v in spoilt.items()}, {k: v[others] for k, v in clean.items()})


def test_without_smoothing_the_cross_entropy_is_the_plain_one():
    logits, labels, table, _, start, _ = make_case(torch.float32, 45, 4, 6)
    options = {**keywords("table", start, True), "label_smoothing": 0.0}
    ce, *_ = ops.CROSS_ENTROPY_DISCREPANCY.default(logits, labels, table, **options)
    plain = F.cross_entropy(logits, labels, reduction="none")
    assert_within_budget(ce, plain, F.cross_entropy(logits.double(), labels, reduction="none"))
    logits[:, 60:] = float("-inf")  # allowed where nothing is smoothed
    logits[:, 50] = 3.0
    ce, *_ = ops.CROSS_ENTROPY_DISCREPANCY.default(logits[:, :51], labels.clamp(max=50), table, **options)
    assert ce.isfinite().all()


def test_rows_more_than_two_to_the_31_elements_apart():
    logits, labels, table, metric, start, grads = make_case(torch.bfloat16, 45, 4, 6)
    far = torch.empty(2**31 + 4096, dtype=torch.bfloat16).as_strided((2, logits.shape[1]), (2**31, 1), 5)
    far.copy_(logits[:2])
    case = (labels[:2], table, metric, start, [g[:2] for g in grads])
    for joint in (False, True):
        assert_same(run(far, *case, joint), run(logits[:2].clone(), *case, joint))


def test_a_row_of_the_table_more_than_two_to_the_31_elements_in():
    n = 46342
    table = torch.empty((n, n), dtype=torch.float16)
    table[n - 1] = floats((n,), torch.float16, seed=3)
    logits, labels, grad = floats((1, n)), torch.tensor([n - 1]), torch.ones(1)
    options = keywords("table", 0)
    loss, lse = ops.TOKEN_DISCREPANCY.default(logits, labels, table, **options)
    distances = table[n - 1].float() * SCALE + OFFSET
    distances[n - 1] = 0
    p = torch.softmax(logits[0].double(), 0)
    exact_loss = (p * distances.double()).sum()
    assert_within_budget(loss[0], (torch.softmax(logits[0], 0) * distances).sum(), exact_loss)
    grad = ops.TOKEN_DISCREPANCY_BACKWARD.default(grad, logits, labels, table, loss, lse, **options)
    plain = torch.softmax(logits[0], 0) * (distances - loss)
    assert_within_budget(grad[0], plain, p * (distances.double() - exact_loss))


@JOINT
def test_no_rows_are_no_work(joint):
    logits, labels, table, metric, start, grads = make_case(torch.float32, 45, 4, 6)
    actual = run(logits[:0], labels[:0], table, metric, start, [g[:0] for g in grads], joint)
    assert actual["grad"].shape == (0, logits.shape[1])
    assert all(actual[name].shape == (0,) for name in actual if name != "grad")


BAD = {
    "logits rank": ("logits", {"logits": torch.zeros(3)}),
    "logits dtype": ("logits", {"logits": torch.zeros(2, 8, dtype=torch.int64)}),
    "logits stride": ("logits", {"logits": torch.zeros(8, 2).T}),
    "labels length": ("labels", {"labels": torch.zeros(3, dtype=torch.int64)}),
    "labels dtype": ("labels", {"labels": torch.zeros(2, dtype=torch.int32)}),
    "table shape": ("table", {"table": torch.zeros(4, 5)}),
    "table layout": ("table", {"table": torch.zeros(4, 8)[:, ::2]}),
    "table dtype": ("table", {"table": torch.zeros(4, 4, dtype=torch.int8)}),
    "codebook dtype": ("table", {"table": torch.zeros(4, 4).double(), "metric": 1}),
    "metric": ("metric", {"metric": 4}),
    "image_start low": ("image_start", {"image_start": -1}),
    "image_start high": ("image_start", {"image_start": 5}),
    "label_smoothing": ("label_smoothing", {"label_smoothing": 1.5}),
}


@pytest.mark.parametrize(("name", "change"), BAD.values(), ids=BAD)
def test_unfit_arguments_are_named(name, change):
    good = {"logits": torch.zeros(2, 8), "labels": torch.zeros(2, dtype=torch.int64), "table": torch.zeros(4, 4)}
    arguments = {**good, **keywords("table", 2, True), **change}
    with pytest.raises(RuntimeError, match=f", {name} must"):
        ops.CROSS_ENTROPY_DISCREPANCY.default(**arguments)


@pytest.mark.parametrize("name", ["grad_output", "loss", "lse"])
@pytest.mark.parametrize(
    "value", [torch.zeros(3), torch.zeros(2).double(), torch.zeros(2, 1)], ids=["long", "double", "matrix"]
)
def test_unfit_numbers_of_rows_are_named(name, value):
    rows = {**{key: torch.zeros(2) for key in ("grad_output", "loss", "lse")}, name: value}
    tensors = {"logits": torch.zeros(2, 8), "labels": torch.zeros(2, dtype=torch.int64), "table": torch.zeros(4, 4)}
    with pytest.raises(RuntimeError, match=f", {name} must"):
        ops.TOKEN_DISCREPANCY_BACKWARD.default(**rows, **tensors, **keywords("table", 2))
