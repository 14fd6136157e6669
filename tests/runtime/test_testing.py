"""ladderkern.testing tests others, so it is tested first: the rule must fail what is wrong."""

import math

import pytest
import torch

from ladderkern.testing import (
    EMPTY_SHAPES,
    LAYOUTS,
    assert_within_budget,
    budget,
    fingerprint_of,
    floats,
    guarded,
    laid_out,
    poisoned_allocations,
)

SHAPE = (4, 3, 5, 6)


def test_the_budget_is_twice_eagers_error_and_one_rounding():
    oracle = torch.tensor([1.0, -4.0], dtype=torch.float64)
    eager = torch.tensor([1.5, -4.0])
    assert budget(eager, oracle) == 2 * (0.5 + torch.finfo(torch.float32).eps * 4.0)


def test_an_error_up_to_the_budget_passes_and_beyond_it_fails():
    oracle = torch.tensor([1.0, -4.0], dtype=torch.float64)
    eager = torch.tensor([1.5, -4.0])
    assert_within_budget(torch.tensor([1.0, -5.0]), eager, oracle)
    with pytest.raises(AssertionError, match=r"loss\[1\]: error .* over the budget"):
        assert_within_budget(torch.tensor([1.0, -5.1]), eager, oracle, "loss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_where_eager_is_exact_two_roundings_are_allowed_and_no_more(dtype):
    oracle = torch.ones(3, dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    assert_within_budget(torch.full((3,), 1 + 2 * eps, dtype=dtype), oracle.to(dtype), oracle)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(torch.full((3,), 1 + 3 * eps, dtype=dtype), oracle.to(dtype), oracle)


@pytest.mark.parametrize(
    ("actual", "oracle"),
    [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf), (-math.inf, math.inf), (math.nan, math.inf)],
)
def test_what_is_not_finite_must_be_in_place(actual, oracle):
    truth = torch.tensor([0.0, oracle], dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"result\[1\]"):
        assert_within_budget(torch.tensor([0.0, actual]), truth.float(), truth)


def test_what_is_not_finite_and_in_place_passes():
    truth = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=torch.float64)
    assert_within_budget(truth.float(), truth.float(), truth)


def test_a_number_past_the_range_of_the_dtype_must_overflow():
    truth = torch.tensor([1e6, 1.0], dtype=torch.float64)
    assert_within_budget(truth.half(), truth.half(), truth)
    with pytest.raises(AssertionError, match=r"result\[0\]"):
        assert_within_budget(torch.tensor([65504.0, 1.0]).half(), truth.half(), truth)


def test_dtype_and_shape_must_agree():
    one = torch.ones(1)
    with pytest.raises(AssertionError, match="dtype"):
        assert_within_budget(one.double(), one, one.double())
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget(torch.ones(2), one, one.double())
    assert_within_budget(torch.ones(0), torch.ones(0), torch.ones(0).double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0, 1, 31])
def test_layouts_hold_the_same_numbers_at_the_offset(layout, offset):
    tensor, plain = floats(SHAPE, layout=layout, offset=offset, seed=3), floats(SHAPE, seed=3)
    assert tensor.storage_offset() == offset
    assert torch.equal(tensor, plain[:1].expand(SHAPE) if layout == "expanded" else plain)
    assert tensor.is_contiguous() == (layout == "contiguous")
    expected = {"transposed": (90, 30, 1, 5), "channels_last": (90, 1, 18, 3), "expanded": (0, 30, 6, 1)}
    expected |= {"contiguous": (90, 30, 6, 1), "every_second": (180, 60, 12, 2), "column_slice": (210, 70, 14, 1)}
    assert tensor.stride() == expected[layout]


def test_floats_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = floats((50,), torch.bfloat16, seed=1)
    assert torch.equal(first, floats((50,), torch.float64, seed=1).bfloat16())
    assert not torch.equal(first, floats((50,), torch.bfloat16, seed=2))


@pytest.mark.parametrize(("layout", "shape"), [("rows", (2, 2)), ("channels_last", (2, 2)), ("transposed", (3,))])
def test_layouts_that_do_not_apply_are_refused(layout, shape):
    with pytest.raises(ValueError, match="layout"):
        floats(shape, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_guards_find_a_write_on_either_side_and_in_the_gaps(layout, dtype):
    original = floats(SHAPE, dtype, layout=layout, offset=3)
    box = guarded(original)
    assert torch.equal(box.tensor, original)
    assert box.tensor.stride() == original.stride()
    assert box.tensor.storage_offset() % 32 == 3
    if layout != "expanded":
        box.tensor.zero_()
    box.assert_untouched()
    start = box.tensor.storage_offset()
    gap = {"every_second": 1, "column_slice": 6}.get(layout, -1)
    for position in (start - 1, start + gap, box.buffer.numel() - 1):
        box = guarded(original)
        box.buffer[position] = 0.0
        with pytest.raises(AssertionError, match="1 elements outside it were written"):
            box.assert_untouched()


@pytest.mark.parametrize("shape", [*EMPTY_SHAPES, ()], ids=str)
def test_guards_around_little_or_nothing(shape):
    box = guarded(floats(shape, offset=5))
    assert box.tensor.shape == shape
    box.assert_untouched()
    box.buffer[box.tensor.storage_offset() - 1] = 0.0
    with pytest.raises(AssertionError, match="outside"):
        box.assert_untouched()


def test_a_read_outside_the_guarded_tensor_shows_as_nan():
    box = guarded(floats((5,)))
    assert box.buffer[box.tensor.storage_offset() + 5].isnan()


def test_poisoned_allocations_are_nan_inside_and_the_mode_is_restored():
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with poisoned_allocations():
        base = torch.ones(3, 2)
        fresh = [torch.empty(3), torch.empty_like(base.t()), base.new_empty(2), torch.empty_strided((2,), (2,))]
        assert all(t.isnan().all() for t in fresh)
        assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)


def test_laid_out_detaches_and_copies():
    source = torch.ones(3, requires_grad=True)
    copy = laid_out(source, "contiguous")
    copy[0] = 5.0
    assert source.tolist() == [1.0, 1.0, 1.0]


def test_fingerprints_follow_every_bit_and_no_stride():
    tensors = [floats((4, 6)), torch.zeros(3, dtype=torch.bfloat16)]
    assert fingerprint_of([tensors[0].t().contiguous().t(), tensors[1]]) == fingerprint_of(tensors)
    for i in range(2):
        changed = [t.clone() for t in tensors]
        changed[i].view(-1)[-1] *= -1  # of the second: the sign of a zero
        assert fingerprint_of(changed) != fingerprint_of(tensors)
