"""Reads and writes past a tensor's end are found in the native library of `make sanitize`; each ends a process of its own."""

import subprocess
import sys
from dataclasses import asdict

import pytest
from sanitizers import SANITIZED, sanitizer_environment

from ladderkern.spam.reference import Hyper

# Tensors over fresh memory of the C runtime, which lacks the last `short` of the elements that the tensor says it has.
HEADER = """
import ctypes
import numpy as np
import torch
from ladderkern.runtime.library import NATIVE
assert NATIVE.loaded, NATIVE.reason
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

def tensor(*shape, short=0):
    count = int(np.prod(shape))
    memory = np.ctypeslib.as_array((ctypes.c_float * count).from_address(malloc(4 * (count - short))))
    memory[: count - short] = 1
    return torch.from_numpy(memory.reshape(shape))

ops = torch.ops.ladderkern
"""
HYPER = asdict(Hyper(0.9, 0.999, 1e-6, 0.0, 0.0, 0, 0, 0, False, False, False, 16, False, 0))
CALLS = {
    "norm, read": "ops.rms_norm(tensor(3, 70, short=SHORT), tensor(70), eps=1e-6, round_sum=True)",
    "prm, read": "ops.prm_scores(tensor(40, 2, short=SHORT), torch.tensor([0, 40]), None, None,"
    "    positive=1, threshold=0.5, strict=False, probabilities=False)",
    "discrepancy, read": "ops.token_discrepancy(tensor(3, 70, short=SHORT), torch.full((3,), 8), tensor(66, 66),"
    "    metric=0, offset=0.0, scale=1.0, image_start=4)",
    "spam, write": "ops.spam_step_([tensor(70, short=SHORT)], [tensor(70)], [tensor(70)], [tensor(70)], [torch.tensor(1.0)],"
    f"    torch.tensor(0.1), **{HYPER}, indices=[0], placement=[])",
}


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("call", CALLS)
def test_an_access_past_the_end_is_found(call, short):
    if not (SANITIZED / "ladderkern" / "lib").is_dir():
        pytest.skip("the sanitized library is not built (make sanitize)")
    command = HEADER + CALLS[call].replace("SHORT", str(short)) + "\nprint('done')"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=SANITIZED, env=sanitizer_environment(), capture_output=True, text=True
    )
    if short:
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr, done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
