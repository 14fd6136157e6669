"""The native rows of the four ops against extended precision: dtypes, sizes, tables, odd values."""

import pytest
import torch
import torch.nn.functional as F
from discrepancy_rows import BOTH, DTYPES, FLOATS, SMOOTHED, UNSMOOTHED, assert_right, assert_same, eager, large, oracle, run

from ladderkern.discrepancy import ops
from ladderkern.discrepancy.reference import METRICS
from ladderkern.testing import assert_within_budget

pytestmark = pytest.mark.usefixtures("native")

NAN, INF = float("nan"), float("inf")


@BOTH
@DTYPES
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 63, 1000, 1024, 1025, 2500])
def test_every_size_is_within_budget(dtype, n, joint):
    for start, after in ((0, 0), (4, 3), (37, 1100)):
        if start + n + after > 1 or not joint:
            assert_right(large(dtype, n, start, after, joint), what=f"start {start}, after {after}")


@BOTH
@DTYPES
@pytest.mark.parametrize(("std", "common"), [(0.1, 0.0), (5.0, 0.0), (15.0, 0.0), (1.0, 1e4), (1.0, -1e4)], ids=str)
def test_sharp_and_shifted_logits_are_within_budget(dtype, std, common, joint):
    assert_right(large(dtype, 1030, 4, 2000, joint, std=std, common=common))


@BOTH
@DTYPES
@pytest.mark.parametrize("table_dtype", FLOATS, ids=str)
def test_every_dtype_of_the_table_is_within_budget(dtype, table_dtype, joint):
    assert_right(large(dtype, 300, 4, 5, joint, table_dtype=table_dtype))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_distances_from_the_codebook_are_within_budget(dtype, metric, joint):
    for n in (1, 17, 64, 1100):
        assert_right(large(dtype, n, 4, 5, joint, metric=METRICS[metric]), what=f"N {n}")


@BOTH
@pytest.mark.parametrize("share", [-30.0, -300.0, 30.0])
def test_image_columns_far_below_or_above_the_text_keep_their_softmax(share, joint):
    for dtype in FLOATS:
        call = large(dtype, 100, 20, 50, joint)
        call.logits[:, 20:120] += share
        assert_right(call, what=f"{dtype}")


@BOTH
def test_rows_of_text_have_no_discrepancy_whatever_they_hold(joint):
    call = large(torch.float32, 45, 4, 6, joint)
    skipped = ~call.counted if joint else ~call.image
    call.logits[skipped] = NAN
    call.grads = [torch.where(skipped, NAN, g) for g in call.grads]
    actual = assert_right(call)
    for name, value in actual.items():
        assert value[skipped].eq(0).all(), name
        assert value.isfinite().all(), name
    assert actual["discrepancy"][~call.image].eq(0).all()


@BOTH
@DTYPES
def test_columns_of_minus_infinity_get_no_gradient_from_the_discrepancy(dtype, joint):
    call = large(dtype, 1100, 4, 6, joint)
    masked = torch.arange(call.logits.shape[1]) % 3 == 1
    masked[call.labels[call.labels >= 0]] = False
    call.logits[:, masked] = -INF
    call.grads[0].zero_()  # a smoothed target on a masked column is an infinite loss
    actual = run(call)
    assert actual["gradient"][:, masked].eq(0).all()
    assert actual["discrepancy"].isfinite().all()
    plain, exact = (f(call.other(joint={})) for f in (eager, oracle))
    for name in ("discrepancy", "gradient"):
        assert_within_budget(actual[name], plain[name], exact[name], name)


def test_a_whole_block_of_minus_infinity_first_is_no_harm():
    call = large(torch.float32, 2500, 0, 0, {})
    call.logits[:, :1200] = -INF
    call.labels[0] = 1300
    assert_right(call)


@BOTH
@DTYPES
def test_nan_and_rows_without_a_finite_logit_stay_in_their_rows(dtype, joint):
    call = large(dtype, 1100, 4, 6, UNSMOOTHED if joint else {})
    clean = run(call)
    call.logits[0, 30] = NAN
    call.logits[1, 4:1104] = -INF
    call.logits[-2, 7] = INF
    spoilt = assert_right(call)
    bad = torch.zeros(len(call.labels), dtype=torch.bool)
    bad[[0, 1, -2]] = True
    assert spoilt["discrepancy"][bad].isnan().all()
    assert spoilt["gradient"][bad, 4:1104].isnan().all()
    assert joint or spoilt["gradient"][bad, :4].eq(0).all()
    assert_same({k: v[~bad] for k, v in spoilt.items()}, {k: v[~bad] for k, v in clean.items()})


@BOTH
def test_nothing_but_minus_infinity(joint):
    call = large(torch.float32, 45, 4, 6, joint)
    call.logits[:4] = -INF
    assert_right(call)


@DTYPES
def test_a_label_outside_the_vocabulary_is_nan_in_its_row_alone(dtype):
    call = large(dtype, 45, 4, 6, SMOOTHED)
    clean = run(call)
    others = torch.arange(len(call.labels)) != 3
    assert not call.image[3]
    for bad in (-1, call.logits.shape[1], 2**40):
        call.labels[3] = bad
        spoilt = assert_right(call)
        assert spoilt["cross_entropy"][3].isnan()
        assert spoilt["gradient"][3].isnan().all()
        assert_same({k: v[others] for k, v in spoilt.items()}, {k: v[others] for k, v in clean.items()})


def test_without_smoothing_the_cross_entropy_is_the_plain_one():
    call = large(torch.float32, 45, 4, 6, UNSMOOTHED)
    plain, exact = (F.cross_entropy(x, call.labels, reduction="none") for x in (call.logits, call.logits.double()))
    assert_within_budget(run(call)["cross_entropy"], plain, exact)
    call.logits[:, 49:] = -INF  # allowed where nothing is smoothed
    call.logits[:, 50] = 3.0
    call.labels[call.labels >= 49] = 50
    assert assert_right(call)["cross_entropy"].isfinite().all()


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
GOOD = {"logits": torch.zeros(2, 8), "labels": torch.zeros(2, dtype=torch.int64), "table": torch.zeros(4, 4)}
OPTIONS = {"metric": 0, "offset": 1.75, "scale": 0.5, "image_start": 2}


@pytest.mark.parametrize(("name", "change"), BAD.values(), ids=BAD)
def test_unfit_arguments_are_named(name, change):
    with pytest.raises(RuntimeError, match=f", {name} must"):
        ops.CROSS_ENTROPY_DISCREPANCY.default(**{**GOOD, **OPTIONS, **SMOOTHED, **change})


ROWS = {
    ops.TOKEN_DISCREPANCY_BACKWARD: ("grad_output", "loss", "top", "total"),
    ops.CROSS_ENTROPY_DISCREPANCY_BACKWARD: (
        "grad_cross_entropy",
        "grad_discrepancy",
        "discrepancy",
        "top",
        "total",
        "image_top",
        "image_total",
    ),
}


@pytest.mark.parametrize(
    "value", [torch.zeros(3), torch.zeros(2).double(), torch.zeros(2, 1)], ids=["long", "double", "matrix"]
)
@pytest.mark.parametrize(("op", "joint"), zip(ROWS, ({}, SMOOTHED), strict=True), ids=["alone", "joint"])
def test_unfit_numbers_of_rows_are_named(op, joint, value):
    for name in ROWS[op]:
        rows = {**dict.fromkeys(ROWS[op], torch.zeros(2)), name: value}
        with pytest.raises(RuntimeError, match=f", {name} must"):
            op.default(**rows, **GOOD, **OPTIONS, **joint)
