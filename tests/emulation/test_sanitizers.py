"""Faults that AddressSanitizer and UBSan find in emulated kernels, each in a process of its own, which it ends."""

import re
import subprocess
import sys

import emulated
import pytest
from sanitizers import sanitizer_environment

N = 64


def run(kernel, place=0):
    """(return code, what it printed, what it complained of) of one kernel of the module that is built with sanitizers."""
    module = emulated.built("ladderkern_emulation_sanitized")
    if module is None:
        pytest.skip("the sanitized module is not built (LADDERKERN_BUILD_SANITIZED=1)")
    command = f"""
import importlib.util
import numpy as np
spec = importlib.util.spec_from_file_location("ladderkern_emulation_sanitized", {str(module)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
memory = [np.zeros({N}, np.float32).view(np.uint8) for _ in range(2)]
module.one_block({kernel!r}, {N}, *memory, {place})
print("done")
"""
    environment = sanitizer_environment(LADDERKERN_EMULATION="sanitized")
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kernel", ["reverse", "sum in rounds", "sum by shuffles"])
def test_kernels_without_a_fault_run(kernel):
    assert run(kernel)[:2] == (0, "done\n")


@pytest.mark.parametrize(
    ("kernel", "place", "found"),
    [
        ("write at", N, "heap-buffer-overflow"),
        ("write at", -1, "(use-after-poison|heap-buffer-overflow)"),
        ("read at", N, "heap-buffer-overflow"),
        ("read at", -2, "(use-after-poison|heap-buffer-overflow)"),
        ("write shared", 256, "heap-buffer-overflow|out of bounds"),
        ("load vector", 1, "misaligned address"),
    ],
)
def test_planted_faults_are_found(kernel, place, found):
    code, _, text = run(kernel, place)
    assert code != 0
    assert re.search(found, text), text
