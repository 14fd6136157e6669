"""The Triton kernels in the interpreter, against an oracle in extended precision and plain PyTorch in the logits' dtype."""

import pytest
import torch
from discrepancy_rows import BOTH, DTYPES, EACH, SMOOTHED, assert_right, distance_table, oracle, run, small

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
METRICS = ("mse", "sqeuclidean", "euclidean")
INF, NAN = float("inf"), float("nan")


STORED = [distance_table(101, metric, "table", dtype) for metric, dtype in zip(METRICS, (F16, BF16, F32), strict=True)]
STORED += [distance_table(101, metric, "codebook", dim=dim) for metric, dim in zip(METRICS, (5, 2, 33), strict=True)]
STORED += [distance_table(101, "euclidean", dtype=F64), distance_table(101, storage="codebook", dim=1)]
EACH_TABLE = pytest.mark.parametrize("table", STORED, ids=lambda t: f"{t.metric}-{t.storage}-{t.dtype}-{t.code_dim}")


@BOTH
@EACH_TABLE
@DTYPES
def test_values_and_gradients(dtype, table, joint):
    assert_right(small(4, dtype=dtype, table=table, **joint), "triton")


@EACH
@DTYPES
def test_rows_of_many_blocks(dtype, joint, small_blocks):
    for table in (STORED[0], STORED[5]):
        assert_right(small(3, dtype=dtype, table=table, V=340, start=140, **joint), "triton")


@BOTH
@DTYPES
def test_the_loss_is_right_to_one_rounding_as_gradients_are_differences_from_it(dtype, joint, blocks):
    case = small(4, dtype=dtype, table=STORED[2], **joint)
    loss, exact = (results["discrepancy"] for results in (run(case, "triton"), oracle(case)))
    assert (loss - exact).abs().max() <= torch.finfo(loss.dtype).eps * exact.max()


@EACH
def test_a_code_is_at_distance_zero_from_itself_whatever_is_stored(joint, blocks):
    case = small(**joint)
    case.table = case.table.clone().fill_diagonal_(3.0)
    assert_right(case, "triton")


SIZES = [(1, 1, 1, 0), (3, 5, 1, 4), (3, 64, 64, 0), (4, 129, 65, 0), (4, 200, 128, 64), (4, 257, 130, 127), (3, 100, 63, 37)]


@EACH
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size, joint, blocks):
    assert_right(small(*size, **joint), "triton")


@EACH
def test_rows_of_the_usual_block(joint):
    table = distance_table(1100, "euclidean", "codebook", dim=3)
    assert_right(small(3, 2300, 1100, 700, BF16, table, **joint), "triton")


@EACH
@DTYPES
def test_skipped_rows_are_exactly_zero_whatever_they_hold(dtype, joint, blocks):
    case = small(dtype=dtype, V=180, **{**joint, "ignore_index": 0} if joint else {})
    skipped = torch.tensor([False, True, False, True, False, True])
    case.labels[skipped] = torch.tensor([0] * 3) if joint else torch.tensor([-100, 3, 105])
    case.logits[skipped] = NAN
    for grad in case.grads:
        grad[skipped] = NAN
    ours = assert_right(case, "triton")
    assert all((result[skipped] == 0).all() for result in ours.values())
    assert ours["gradient"][~skipped].any(dim=1)[[0, 2]].any()


def test_a_batch_without_image_tokens():
    case = small()
    case.labels[:] = torch.tensor([-100, 0, 3, 105, 149, 2**40])
    assert not any(result.any() for result in assert_right(case, "triton").values())


@EACH
@DTYPES
def test_columns_of_minus_infinity(dtype, joint, blocks):
    case = small(dtype=dtype, **joint)
    case.logits[0, 4:80] = -INF
    case.logits[0, 4] = 1.0  # the target
    case.logits[1, 50] = -INF
    case.logits[3, 4:105] = -INF  # nothing is left
    case.logits[3, case.labels[3]] = -INF
    if not joint:  # a cross-entropy of 3e38 would leave no budget to speak of
        case.logits[4] = torch.finfo(dtype).min
    ours = assert_right(case, "triton")
    assert ours["gradient"][0, 5:80].ne(0).any() == bool(joint and joint["label_smoothing"])
    assert ours["discrepancy"][3].isnan()


@EACH
def test_nothing_but_minus_infinity(joint, blocks):
    case = small(**joint)
    case.logits[0] = -INF
    case.logits[2] = -INF
    assert_right(case, "triton")


@BOTH
@DTYPES
def test_nan_stays_in_its_row(dtype, joint, blocks):
    case = small(dtype=dtype, **joint)
    case.logits[0, 77] = NAN
    case.logits[4, 1] = NAN  # a text column of an image row
    case.logits[5, 149] = INF
    ours = assert_right(case, "triton")
    assert ours["discrepancy"][4].isfinite()
    assert ours["gradient"][[1, 3]].isfinite().all()


@BOTH
@DTYPES
def test_a_common_offset_of_all_logits(dtype, joint, blocks):
    case = small(4, dtype=dtype, **joint)
    case.logits = (case.logits.double() + 1e4).to(dtype)
    assert_right(case, "triton")


@DTYPES
@pytest.mark.parametrize("above", [200.0, -200.0])
def test_text_far_above_or_below_the_image_columns(dtype, above, blocks):
    case = small(4, dtype=dtype, **SMOOTHED)
    case.logits[:, 105:] += above
    assert_right(case, "triton")


@pytest.mark.parametrize("label", [-1, 150, -(2**40), 2**40])
def test_a_label_outside_the_vocabulary_makes_its_row_nan(label):
    case = small(**SMOOTHED)
    case.labels[2:4] = torch.tensor([label, -100])
    ours = assert_right(case, "triton")
    assert ours["cross_entropy"][2].isnan()
    assert ours["gradient"][2].isnan().all()
    assert ours["gradient"][3].eq(0).all()


@pytest.mark.parametrize("ignored", [4, 50, 149])
def test_an_ignored_image_label_still_counts_for_the_discrepancy(ignored, blocks):
    case = small(ignore_index=ignored, label_smoothing=0.1)
    case.labels[:3] = torch.tensor([4, 50, 149])
    assert_right(case, "triton")
