"""Each CUDA kernel in the built library, without a GPU: registers, spills, width of accesses, float64, occupancy.

``make aot`` builds the library where nvcc is. The budgets are those of nvcc ``MADE_BY``; the rest is checked with any.
"""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
from budgets import HEADING, budget_of, cells, over_budget
from compiler import cuobjdump, sass_code

import ladderkern

LIBRARY = Path(ladderkern.__file__).parent / "lib" / "libladderkern_cuda.so"
MADE_BY = "13.0"
MODE = os.environ.get("LADDERKERN_AOT", "")
TARGETS = ("sm_80", "sm_90", "sm_100")
CALL = "CUDA library"
SIZES = {"float": 4, "double": 8, "bf16": 2, "f16": 2}
VECTOR = 8  # elements of a thread
EVERY_DTYPE = sum(VECTOR * size // 16 for size in SIZES.values())  # 16-byte pieces of a vector, in each dtype once
RESERVED = 1024  # bytes of shared memory that ptxas counts from sm_90 on, and the system takes for itself


@functools.cache
def library() -> Path:
    if not LIBRARY.exists():
        assert MODE != "update", "new budgets need the CUDA library, and so nvcc"
        pytest.skip("the CUDA library is not built (make aot builds it where nvcc is)")
    return LIBRARY


def demangled(symbol: str) -> str:
    """spam_step<float, 1>"""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"lk::|void |\(lk::SpamMask\)|\(.*\)$", "", re.sub(r"\(lk::SpamMask\)", "", name))


def sections(text: str, start: str) -> dict[str, str]:
    """The text of each function."""
    pieces = re.split(start, text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


@functools.cache
def codes(target):
    """{kernel: its code}"""
    usage = sections(cuobjdump("-arch", target, "--dump-resource-usage", library()), r"^ Function (\w+):")
    sass = sections(cuobjdump("-arch", target, "-sass", library()), r"^\s*Function : (\w+)$")
    headers = sections(cuobjdump("-arch", target, "-elf", library()), r"^\.nv\.info\.(\w+)$")
    if not usage:
        pytest.skip(f"the CUDA library is not built for {target} (LADDERKERN_CUDA_ARCHS)")
    assert usage.keys() == sass.keys()
    found = {}
    for symbol, text in usage.items():
        bound = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+EIFMT_SVAL\s+Value:\s+(0x[0-9a-f]+)", headers[symbol])
        assert bound, f"{symbol} has no launch bounds"
        shared = int(re.search(r"SHARED:(\d+)", text)[1])
        shared -= RESERVED if shared and target != "sm_80" else 0
        found[demangled(symbol)] = sass_code(text, sass[symbol], int(bound[1], 16), shared)
    return found


def least_wide(kernel: str) -> tuple[int, int]:
    """16-byte (loads, stores) of a kernel: the vectors that it holds, and those of its loops over longer rows."""
    name, *types = re.findall(r"\w+", kernel)
    if name == "spam_step":  # p, g and, unless one by one, two moments; float32 and float64 moments have kinds of their own
        moments = 0 if types[1] == "1" else 2
        kinds = EVERY_DTYPE - VECTOR * SIZES["f16"] // 16
        return (2 + moments) * EVERY_DTYPE, 2 * EVERY_DTYPE + moments * kinds
    if name not in ("norm_forward", "norm_backward"):
        return 0, 0  # lanes hold one step, or one column, each
    x, o = (VECTOR * SIZES[t] // 16 for t in types)
    wide = VECTOR * (8 if types[0] == "double" else 4) // 16
    held = 1 if types[0] == "double" else 2  # vectors in registers
    if name == "norm_forward":  # x and two addends, also of what is read again, and two weights
        return (held + 2) * 3 * x + (held + 1) * 2 * EVERY_DTYPE, (held + 1) * (x + 2 * o)
    return (held + 1) * (x + 2 * o + 2 * EVERY_DTYPE) + held * x, held * (x + 2 * wide)


@pytest.mark.parametrize("target", TARGETS)
def test_the_code_keeps_to_its_budget(target, table_row, record_property):
    over = []
    for kernel, code in codes(target).items():
        table_row("CUDA kernels", HEADING, cells(kernel, target, code))
        doubles = [name for name in code.doubles if not name.startswith("F2F.")]  # float64 tensors are narrowed as they come
        assert bool(doubles) == ("double" in kernel), f"{kernel}: float64 arithmetic {sorted(set(doubles))}"
        assert code.spilled == 0, f"{kernel}: {code.spilled} bytes a thread in local memory"
        found, least = (code.loads[16], code.stores[16]), least_wide(kernel)
        wide = all(a >= b for a, b in zip(found, least, strict=True))
        assert wide, f"{kernel}: 16-byte loads, stores {found} where {least} belong"
        if MODE == "update":
            record_property("budget", budget_of(CALL, kernel, target, code))
        elif f"release {MADE_BY}," in built_by():
            over += over_budget(CALL, kernel, target, code)
    assert not over, "; ".join(over)


@functools.cache
def built_by() -> str:
    """How nvcc names itself in what it compiles."""
    return re.search(rb"Cuda compilation tools, release [\d.]+,", library().read_bytes())[0].decode()


def test_every_kernel_of_the_sources_is_seen():
    sources = "".join(path.read_text() for path in (Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cuh"))
    written = set(re.findall(r"__global__ void (?:__launch_bounds__\([^()]*(?:\([^()]*\))?[^()]*\) )?(\w+)\(", sources))
    assert {re.match(r"\w+", kernel)[0] for kernel in codes("sm_90")} == written
