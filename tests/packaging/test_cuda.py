"""The CUDA library: what the build switch says, what the library needs, and what it registers, all without a GPU."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ladderkern
from ladderkern.runtime.library import CUDA

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(ladderkern.__file__).parent / "lib" / "libladderkern_cuda.so"
STAND_IN = ROOT / "build" / "cmake" / "stand_in" / "libtorch_cuda.so"
FOREIGN = re.compile(r"((aoti_torch|torch)_\w+|\S+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+)$")
WEAK_BY_DEFAULT = re.compile(r"(_ITM_\w+|__gmon_start__|__cxa_finalize)(@\S+)?$")


@pytest.fixture
def library():
    if not LIBRARY.exists():
        pytest.skip("the CUDA library is not built (LADDERKERN_BUILD_CUDA=1)")
    return LIBRARY


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def find_nvcc(**environment):
    command = [sys.executable, "-c", "import setup; print(setup.find_nvcc())"]
    kept = {k: v for k, v in os.environ.items() if k not in ("LADDERKERN_BUILD_CUDA", "CUDACXX")}
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_without_nvcc_the_build_says_so_and_goes_on():
    assert find_nvcc(CUDACXX="/nowhere/nvcc") == (
        0,
        "None",
        "ladderkern: no nvcc here: built without the CUDA library, Triton serves GPUs",
    )


def test_a_missing_nvcc_is_an_error_where_cuda_was_asked_for():
    code, _, text = find_nvcc(CUDACXX="/nowhere/nvcc", LADDERKERN_BUILD_CUDA="1")
    assert code == 1
    assert text.startswith("ladderkern: LADDERKERN_BUILD_CUDA=1 needs nvcc")


def test_nvcc_is_used_where_it_is_named_and_nowhere_if_not_wanted(tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert find_nvcc(CUDACXX=str(nvcc)) == (0, str(nvcc), "")
    assert find_nvcc(CUDACXX=str(nvcc), LADDERKERN_BUILD_CUDA="0") == (0, "None", "")


def test_the_switch_takes_only_0_auto_and_1():
    code, _, text = find_nvcc(LADDERKERN_BUILD_CUDA="yes")
    assert (code, text) == (1, "ladderkern: LADDERKERN_BUILD_CUDA must be 0, auto or 1, got 'yes'")


def test_library_needs_only_the_c_shim_of_torch_and_the_toolchain(library):
    foreign = []
    for line in output_of("nm", "-D", "--undefined-only", library).splitlines():
        kind, symbol = line.split()
        if not (FOREIGN.match(symbol) or (kind == "w" and WEAK_BY_DEFAULT.match(symbol))):
            foreign.append(line)
    assert foreign == []


def test_library_holds_no_path_of_the_build_machine(library):
    dynamic = output_of("readelf", "-d", library)
    assert "[libtorch_cuda.so]" in dynamic, "the loader then finds torch's stream, which is in no other library"
    assert "libcudart" not in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert os.fsencode(ROOT) not in library.read_bytes()


def test_no_kernel_keeps_anything_in_local_memory(library):
    """Registers that spill, and arrays that are no registers at all, show as a stack."""
    triton = importlib.util.find_spec("triton")
    tool = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool or not tool.exists():
        pytest.skip("cuobjdump comes with Triton, which is not installed")
    usage = output_of(tool, "--dump-resource-usage", library)
    kernels = re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert len(kernels) >= 20
    assert {name for name, stack, local in kernels if int(stack) or int(local)} == set()


def test_a_cpu_build_of_torch_leaves_the_library_alone():
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this is a CUDA build of torch")
    assert not CUDA.loaded
    assert ladderkern.info()["cuda library"] == "does not serve a torch that is built without CUDA"


def test_library_loads_and_registers_its_ops_without_a_gpu(library):
    """Over a stand-in for libtorch_cuda.so, as the linker had it; a CUDA build of torch brings its own."""
    if not STAND_IN.exists():
        pytest.skip("linked with a CUDA build of torch")
    command = f"""
import ctypes, torch
ctypes.CDLL({str(STAND_IN)!r})
torch.version.cuda = "13.0"
import ladderkern
from ladderkern.runtime.library import CUDA, OPS
assert CUDA.loaded, CUDA.reason
print(ladderkern.info()["cuda library"])
for name, op in OPS.items():
    if "cuda" in op.backends:
        (line,) = [line for line in torch._C._dispatch_dump(f"ladderkern::{{name}}").splitlines() if line.startswith("CUDA:")]
        print(name, "csrc/cuda/" in line)
"""
    lines = output_of(sys.executable, "-c", command).splitlines()
    assert re.fullmatch(r"loaded, built with CUDA \d+\.\d", lines[0])
    assert set(lines[1:]) == {
        f"{name} True"
        for name in (
            *("spam_step_", "prm_scores"),
            *("add_rms_norm", "add_rms_norm_backward", "rms_norm", "rms_norm_backward"),
        )
    }
