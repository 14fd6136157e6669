"""The native rows of the four ops wherever they lie in memory: offsets, strides, guard bands, far apart, none at all."""

from itertools import product

import pytest
import torch
from discrepancy_rows import BOTH, DTYPES, SMOOTHED, assert_same, large, run

from ladderkern.testing import assert_within_budget, floats, guarded, laid_out, poisoned_allocations

pytestmark = pytest.mark.usefixtures("native")


@DTYPES
def test_every_offset_and_row_stride_gives_the_contiguous_result_and_reads_nothing_beside(dtype):
    for offset, joint in product(range(32), ({}, SMOOTHED)):
        call = large(dtype, 45, 4, 6, joint, table_dtype=torch.float16)
        boxes = [
            guarded(laid_out(call.logits, "column_slice", offset)),
            guarded(laid_out(call.labels, "every_second", (3 * offset) % 32)),
            guarded(laid_out(call.table, "contiguous", (5 * offset) % 32)),
            *(guarded(laid_out(g, "every_second", (7 * offset) % 32)) for g in call.grads),
        ]
        logits, labels, table, *grads = (box.tensor for box in boxes)
        moved = call.other(logits=logits, labels=labels, table=table, grads=grads)
        assert_same(run(moved), run(call), f"offset {offset}")
        for box in boxes:
            box.assert_untouched()


@BOTH
@DTYPES
def test_an_expanded_grad_output_is_read_as_such(dtype, joint):
    call = large(dtype, 45, 4, 6, joint)
    expanded = call.other(grads=[g[:1].expand(len(call.labels)) for g in call.grads])
    assert_same(run(expanded), run(call.other(grads=[g.contiguous() for g in expanded.grads])))


@DTYPES
def test_a_slice_of_the_image_columns_gives_what_the_whole_row_gives(dtype):
    call = large(dtype, 1100, 4, 600, {})
    whole = run(call)
    part = run(call.other(logits=call.image_logits, labels=call.labels - 4, options={**call.options, "image_start": 0}))
    assert_same({**whole, "gradient": whole["gradient"][:, 4:1104]}, part)
    assert whole["gradient"][:, :4].eq(0).all()
    assert whole["gradient"][:, 1104:].eq(0).all()


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 70), (torch.bfloat16, 140)], ids=str)
def test_the_zeros_of_a_gradient_larger_than_the_caches_are_all_written(dtype, rows):
    columns, start, n = 65537, 4099, 45  # odd: the runs of zeros start at every alignment
    assert rows * columns * dtype.itemsize >= 16 << 20
    call = large(dtype, n, start, columns - start - n, {})
    call.logits, call.labels = floats((rows, columns), dtype, seed=1), start + torch.arange(rows) % n
    call.labels[::3] = 7
    call.grads = [None, floats((rows,), seed=4)]
    with poisoned_allocations():
        whole = run(call)["gradient"]
    part = call.other(logits=call.image_logits, labels=call.labels - start, options={**call.options, "image_start": 0})
    assert torch.equal(whole[:, start : start + n], run(part)["gradient"])
    assert whole[::3].eq(0).all()
    assert whole[:, :start].eq(0).all()
    assert whole[:, start + n :].eq(0).all()


@BOTH
def test_rows_more_than_two_to_the_31_elements_apart(joint):
    call = large(torch.bfloat16, 45, 4, 6, joint).rows(slice(0, 2))
    far = torch.empty(2**31 + 4096, dtype=torch.bfloat16).as_strided((2, call.logits.shape[1]), (2**31, 1), 5)
    assert_same(run(call.other(logits=far.copy_(call.logits))), run(call))


def test_a_row_of_the_table_more_than_two_to_the_31_elements_in():
    n = 46342
    table = torch.empty((n, n), dtype=torch.float16)
    table[n - 1] = floats((n,), torch.float16, seed=3)
    call = large(torch.float32, 1, 0, n - 1, {}).rows(slice(0, 1))
    call.table, call.labels, call.grads = table, torch.tensor([n - 1]), [None, torch.ones(1)]
    actual = run(call)
    distances = table[n - 1].float() * call.options["scale"] + call.options["offset"]
    distances[n - 1] = 0
    p, exact_p = torch.softmax(call.logits, 1), torch.softmax(call.logits.double(), 1)
    loss, exact_loss = (p * distances).sum(1), (exact_p * distances.double()).sum(1)
    assert_within_budget(actual["discrepancy"], loss, exact_loss)
    assert_within_budget(actual["gradient"], p * (distances - loss), exact_p * (distances.double() - exact_loss))


@BOTH
def test_no_rows_are_no_work(joint):
    actual = run(large(torch.float32, 45, 4, 6, joint).rows(slice(0, 0)))
    assert actual.pop("gradient").shape == (0, 55)
    assert all(value.shape == (0,) for value in actual.values())
