"""The SPAM step's CUDA kernels on the CPU, by the tests of the Triton kernel, and what is theirs alone."""

import itertools

import emulated
import pytest
import torch

steps = emulated.triton_tests("spam")
steps.TRITON = emulated.spam_step_
globals().update(
    emulated.tests_of(
        steps,
        # of Triton's launcher
        "test_opcheck",
        "test_tables_are_uploaded_once",
        "test_a_short_list_is_refused",
        "test_dense_layouts_shared_by_all_tensors_are_walked_in_place",
    )
)


def count_launches(lists, mask):
    indices = list(range(3, 3 + len(lists[0])))
    return emulated.spam_step_(*lists, steps.LR, **{**steps.HYPER, **mask}, indices=indices, placement=[])


@pytest.mark.parametrize("param", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lr", [torch.tensor(0.02), torch.tensor(0.02, dtype=torch.float64)], ids=str)
def test_lr_read_on_the_device(lr, param):
    lists = steps.make([(40,), (16, 16)], param, moments=param)
    eager, oracle = steps.clone(lists), steps.clone(lists, torch.float64)
    steps.call(emulated.spam_step_, lists, lr=lr, lr_on_device=True)
    steps.call(steps.REFERENCE, eager, lr=lr)
    steps.call(steps.REFERENCE, oracle, lr=lr)
    for ours, plain, exact in zip(lists[:4], eager, oracle, strict=False):
        for tensors in zip(ours, plain, exact, strict=True):
            steps.assert_within_budget(*tensors)


@steps.MASKS
def test_more_tensors_than_the_arguments_of_a_launch_can_name(mask):
    lists = steps.make([(16, 16)] * 325, **mask)
    expected = steps.clone(lists)
    launches = count_launches(lists, mask)
    assert launches == 3, "two launches of the update and one that counts the steps"
    steps.call(steps.REFERENCE, expected, **mask)
    for ours, plain in zip(itertools.chain(*lists[:4]), itertools.chain(*expected[:4]), strict=True):
        steps.assert_within_budget(ours, plain, plain.double())
    assert all(step.item() == 4.0 for step in lists[4])


def test_a_call_of_one_arithmetic_is_one_launch_whatever_the_dtypes():
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    params, grads = zip(*itertools.product(dtypes, dtypes), strict=True)
    lists = steps.make([(16, 16)] * 9, list(params), list(grads), [torch.float32, torch.bfloat16, torch.float32] * 3)
    assert count_launches(lists, {}) == 2
