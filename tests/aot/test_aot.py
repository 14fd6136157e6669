"""Each Triton kernel, compiled as its launcher asks and without a GPU: registers, spills, width of accesses, float64.

The budgets lie in budgets.csv, a line a kernel of a call and target: registers a thread, bytes of shared memory, accesses of
global memory narrower than 16 bytes, and bytes spilled. They are what Triton ``MADE_BY`` compiled, registers rounded up by a
step, and hold for that release alone; spills, wide accesses, float64 and fusion are checked with any. With
``LADDERKERN_AOT=update`` the file is written anew; a call, kernel or target that it does not hold is an error.
``LADDERKERN_AOT=all`` takes every target, otherwise it is those of ``USUAL``.
"""

import functools
import os

import pytest
import triton
from budgets import HEADING, budget_of, cells, over_budget
from calls import every_call
from compiler import DEVICES, code_of, compiling_for

MADE_BY = "3.9"
USUAL = ("sm_90", "gfx942")
MODE = os.environ.get("LADDERKERN_AOT", "")
CALLS = every_call()
TARGETS = DEVICES if MODE else USUAL


@functools.cache
def kernels(call, target):
    """[(kernel, its arguments by keyword, its code)] of a call, each kernel once."""
    with compiling_for(DEVICES[target]) as launches:
        CALLS[call].run()
    assert launches
    return [(launch.kernel, launch.arguments, code_of(launch.compiled)) for launch in launches]


@pytest.fixture(params=[(call, target) for target in TARGETS for call in CALLS], ids=lambda case: f"{case[1]}-{case[0]}")
def case(request):
    """(call, target)"""
    return request.param


def test_the_code_keeps_to_its_budget(case, table_row, record_property):
    call, target = case
    over = []
    for kernel, arguments, code in kernels(call, target):
        table_row("Triton kernels compiled ahead of time", HEADING, cells(f"{call}: {kernel}", target, code))
        assert arguments.get("enable_fp_fusion") is not None, f"{kernel}: whether a * b + c is fused is left to the compiler"
        assert bool(code.doubles) == CALLS[call].double, f"{kernel}: float64 instructions {sorted(set(code.doubles))}"
        assert code.spilled == 0, f"{kernel}: {code.spilled} bytes a thread are spilled"
        assert_wide(kernel, arguments, code, CALLS[call].wide.get(kernel, ((), ())))
        if MODE == "update":
            record_property("budget", budget_of(call, kernel, target, code))
        elif triton.__version__.startswith(f"{MADE_BY}."):
            over += over_budget(call, kernel, target, code)
    assert not over, "; ".join(over)


def assert_wide(kernel, arguments, code, dtypes):
    """Columns of these dtypes are (loaded, stored) in as few accesses as 16 bytes each allow."""
    for name, accesses, of_columns in zip(("loads", "stores"), (code.loads, code.stores), dtypes, strict=True):
        per_thread = arguments["BLOCK"] // code.threads if of_columns else 0
        least = sum(per_thread * dtype.itemsize // 16 for dtype in of_columns)
        assert accesses[16] >= least, f"{kernel}: {accesses[16]} {name} of 16 bytes where {least} belong: {dict(accesses)}"
