"""token_discrepancy_loss: right on every backend, whatever the logits' dtype, layout and content."""

import math
import mmap

import pytest
import torch

import ladderkern
from ladderkern.testing import assert_within_budget, floats

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
SIZES = [
    {"T": 1, "N": 1, "V": 1, "start": 0},
    {"T": 5, "N": 2, "V": 9, "start": 7},
    {"T": 7, "N": 63, "V": 70},
    {"T": 3, "N": 1000, "V": 1100, "start": 8},
    {"T": 64, "N": 64, "V": 64, "start": 0},
]


def assert_right(plain, case, grad=None):
    """Losses and gradient within the budget that plain eager PyTorch sets, and the logits as they were."""
    grad = floats((len(case.labels),), seed=9) if grad is None else grad
    before = case.logits.clone()
    x = case.logits.requires_grad_()
    losses = case.loss(reduction="none")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    assert losses.dtype == wide
    (gradient,) = torch.autograd.grad(losses, x, grad.to(wide))
    e = case.logits.detach().clone().requires_grad_()
    plain_losses = plain.eager(e, case.labels, case.D, case.start)
    (plain_gradient,) = torch.autograd.grad(plain_losses, e, grad.to(wide))
    expected, _, expected_gradient = plain.oracle(x, case.labels, case.D, case.start, grad.to(wide))
    assert_within_budget(losses.detach(), plain_losses.detach(), expected, "loss")
    assert_within_budget(gradient, plain_gradient, expected_gradient, "gradient")
    skipped = (case.labels < case.start) | (case.labels >= case.start + case.N)
    assert (losses[skipped] == 0).all()
    assert (gradient[skipped] == 0).all()
    assert torch.equal(x.detach(), before)


@DTYPES
def test_losses_and_gradients(plain, backend, dtype, metric, storage):
    assert_right(plain, plain.make_case(dtype=dtype, metric=metric, storage=storage))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(plain, backend, storage, size):
    assert_right(plain, plain.make_case(**size, storage=storage))


@pytest.mark.parametrize("table_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_table_dtypes(plain, backend, table_dtype, dtype):
    # Rows enough that the largest errors are no matter of luck: of 13 rows in float64 they vary 10-fold between seeds.
    assert_right(plain, plain.make_case(T=400, dtype=dtype, table_dtype=table_dtype, metric="euclidean"))


@DTYPES
@pytest.mark.parametrize("offset", [0, 1, 4, 31])
def test_rows_far_apart_at_any_offset(plain, backend, dtype, offset):
    assert_right(plain, plain.make_case(dtype=dtype, offset=offset, gap=13))


def test_labels_with_a_stride(plain, backend):
    case = plain.make_case()
    expected = case.loss(reduction="none")
    case.labels = torch.stack([case.labels, case.labels + 1], dim=1)[:, 0]
    assert torch.equal(case.loss(reduction="none"), expected)
    assert torch.equal(case.loss(labels=case.labels.int(), reduction="none"), expected)


@pytest.mark.parametrize("kind", ["expanded", "every second", "negative", "zero"])
def test_any_grad_output(plain, backend, kind):
    case = plain.make_case()
    grads = {"expanded": torch.tensor(0.7).expand(23), "every second": floats((46,))[::2]}
    assert_right(plain, case, grads.get(kind, floats((23,)) * (0.0 if kind == "zero" else -1.0)))


def test_backward_twice_with_two_gradients(plain, backend):
    case = plain.make_case()
    x = case.logits.requires_grad_()
    losses = case.loss(reduction="none")
    first = torch.autograd.grad(losses, x, torch.ones(23), retain_graph=True)[0]
    second = torch.autograd.grad(losses, x, floats((23,), seed=4))[0]
    torch.testing.assert_close(second, first * floats((23,), seed=4)[:, None])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_skipped_rows_may_hold_anything(plain, backend, value):
    case = plain.make_case()
    skipped = (case.labels < 4) | (case.labels >= 65)
    case.logits[skipped] = value
    x = case.logits.requires_grad_()
    losses = case.loss(reduction="none")
    losses.backward(torch.full((23,), 1.0).masked_fill(skipped, math.nan))
    assert (losses[skipped] == 0).all()
    assert (x.grad[skipped] == 0).all()
    assert losses.isfinite().all()
    assert x.grad.isfinite().all()


def test_text_columns_have_no_part_in_it(plain, backend):
    case = plain.make_case()
    expected = case.loss()
    case.logits[:, :4], case.logits[:, 65:] = math.nan, math.inf
    x = case.logits.requires_grad_()
    loss = case.loss()
    loss.backward()
    assert torch.equal(loss, expected)
    assert (x.grad[:, :4] == 0).all()
    assert (x.grad[:, 65:] == 0).all()


def test_masked_columns_contribute_exactly_nothing(plain, backend):
    case = plain.make_case()
    case.logits[:, 10:20] = -math.inf
    assert_right(plain, case)
    (gradient,) = torch.autograd.grad(case.loss(), case.logits)
    assert (gradient[:, 10:20] == 0).all()


def test_a_nan_stays_in_its_row(plain, backend):
    case = plain.make_case()
    row = int(((case.labels >= 4) & (case.labels < 65)).nonzero()[3])
    case.logits[row, 30] = math.nan
    x = case.logits.requires_grad_()
    losses = case.loss(reduction="none")
    losses.sum().backward()
    others = torch.arange(23) != row
    assert losses[row].isnan()
    assert losses[others].isfinite().all()
    assert x.grad[row, 4:65].isnan().all()
    assert x.grad[others].isfinite().all()


@pytest.mark.filterwarnings("ignore:the image logits")
def test_a_row_masked_altogether_is_nan_as_in_eager(plain, backend):
    case = plain.make_case()
    case.logits[0, 4:65] = -math.inf
    losses = case.loss(reduction="none")
    assert losses[0].isnan()
    assert losses[1:].isfinite().all()


def test_a_common_offset_of_the_logits_changes_little(plain, backend):
    case = plain.make_case()
    case.logits += 1e4
    expected, _, _ = plain.oracle(case.logits, case.labels, case.D, 4)
    losses = case.loss(reduction="none")
    assert_within_budget(losses, plain.eager(case.logits, case.labels, case.D, 4), expected)


def test_gradients_under_a_common_offset_of_the_logits(plain, backend):
    case = plain.make_case()
    case.logits += 1e4
    assert_right(plain, case)


def test_duplicate_codes(plain, backend, metric, storage):
    codebook = floats((61, 20), seed=1)
    codebook[7:40] = codebook[7]
    case = plain.make_case()
    case.table = ladderkern.DistanceTable(codebook, metric, storage=storage)
    case.D = plain.distances(case.table)
    assert_right(plain, case)
    case.labels[:] = 4 + 7
    case.logits = case.logits.detach()
    case.logits[:, 4:11], case.logits[:, 44:] = -math.inf, -math.inf
    assert case.loss(reduction="sum").item() == 0.0  # all mass lies on copies of the target


def test_order_puts_codes_into_column_order(plain, backend, storage):
    order = torch.randperm(61, generator=torch.Generator().manual_seed(3))
    case = plain.make_case(storage=storage)
    permuted = plain.make_case(storage=storage, order=order)
    x = case.logits.clone()
    x[:, 4:65] = case.logits[:, 4:65][:, order]
    position = torch.argsort(order)
    image = (case.labels >= 4) & (case.labels < 65)
    labels = torch.where(image, position[(case.labels - 4).clamp(0, 60)] + 4, case.labels)
    torch.testing.assert_close(permuted.loss(logits=x, labels=labels), case.loss())


def test_two_losses_on_one_logits(plain, backend):
    case = plain.make_case()
    x = case.logits.requires_grad_()
    discrepancy = case.loss()
    ce = torch.nn.functional.cross_entropy(x, case.labels)
    both = torch.autograd.grad(ce + discrepancy, x)[0]
    y = case.logits.detach().requires_grad_()
    alone = torch.autograd.grad(torch.nn.functional.cross_entropy(y, case.labels), y)[0]
    torch.testing.assert_close(both - alone, torch.autograd.grad(case.loss(), x)[0], atol=1e-6, rtol=1e-5)


def test_the_result_does_not_depend_on_requires_grad(plain, backend):
    case = plain.make_case()
    frozen = case.loss()
    assert torch.equal(case.loss(case.logits.clone().requires_grad_()).detach(), frozen)


def test_one_row_of_logits_for_all_labels(plain, backend):
    case = plain.make_case()
    row = case.logits[:1].expand(23, 90)
    assert torch.equal(case.loss(row, reduction="none"), case.loss(row.contiguous(), reduction="none"))


def test_a_wide_stride_passes_2_31_elements(plain, backend):
    case = plain.make_case(T=3)
    stride = 2**30 + 5
    lazily_backed = mmap.mmap(
        -1, 2 * (2 * stride + 90), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    )
    raw = torch.frombuffer(lazily_backed, dtype=torch.bfloat16)
    far = raw.as_strided((3, 90), (stride, 1))
    far.copy_(case.logits)
    case.labels[:] = torch.tensor([4, 30, 64])
    assert torch.equal(case.loss(far, reduction="none"), case.loss(far.clone(), reduction="none"))
