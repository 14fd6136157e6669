"""The CUDA library with a CUDA build of torch and no GPU: it loads, its ops are registered, calling them says what is wrong.

``make cuda-load-check`` runs this in an environment of its own, where nothing of it is skipped.
"""

import os
import re

import pytest
import torch

import ladderkern
from ladderkern.runtime.library import CUDA, OPS

WANTED = os.environ.get("LADDERKERN_CUDA_LOAD_CHECK") == "1"
pytestmark = [
    pytest.mark.skipif(not (WANTED or CUDA.loaded), reason=f"the CUDA library {CUDA.reason}: make cuda-load-check"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible"),
]
SERVED = [name for name, op in OPS.items() if "cuda" in op.backends]
ops = torch.ops.ladderkern
KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
HYPER = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "threshold": 50.0, "reset_interval": 5, "warmup_steps": 3,
    "unclipped_steps": 2, "cycle_correction": False, "freeze_zero_variance": False, "maximize": False, "density_16ths": 16,
    "row_mask": False, "seed": 0,
}  # fmt: skip
X, W, RSTD = torch.ones(3, 64), torch.ones(64), torch.ones(3)
CALLS = {
    "rms_norm": lambda op: op(KEY, X, W, eps=1e-6, round_sum=True),
    "rms_norm_backward": lambda op: op(KEY, X, X, W, RSTD),
    "add_rms_norm": lambda op: op(KEY, X, X, None, W, None, eps=1e-6, round_sum=True),
    "add_rms_norm_backward": lambda op: op(KEY, X, X, X, X, W, None, RSTD),
    "prm_scores": lambda op: op(
        KEY, X, torch.tensor([0, 3]), None, None, positive=1, threshold=0.5, strict=False, probabilities=False
    ),
    "spam_step_": lambda op: op(
        KEY, *([torch.ones(16)] for _ in range(4)), [torch.zeros(())], torch.tensor(0.1), indices=[0], placement=[], **HYPER
    ),
}


def test_the_library_is_loaded_and_no_gpu_is_visible():
    assert CUDA.loaded, CUDA.reason
    info = ladderkern.info()
    assert re.fullmatch(r"loaded, built with CUDA \d+\.\d", info["cuda library"])
    assert info["gpu"] == "none visible"


def test_every_op_that_it_serves_is_tried_here():
    assert sorted(SERVED) == sorted(CALLS)


@pytest.mark.parametrize("name", SERVED)
def test_its_implementation_is_the_one_for_cuda_tensors(name):
    dump = torch._C._dispatch_dump(f"ladderkern::{name}").splitlines()
    (line,) = [line for line in dump if line.startswith("CUDA:")]
    assert "csrc/cuda/" in line
    assert OPS[name].default.has_kernel_for_dispatch_key(torch._C.DispatchKey.CUDA)


@pytest.mark.parametrize("name", SERVED)
def test_a_call_with_cpu_tensors_says_so(name):
    """Past the dispatcher, which would never bring a CPU tensor here: the launcher itself refuses before it asks the driver."""
    with pytest.raises(RuntimeError, match="CUDA device") as caught:
        CALLS[name](getattr(ops, name).default.redispatch)
    assert "driver" not in str(caught.value)


def test_public_functions_name_the_reason():
    with ladderkern.backend("cuda"), pytest.raises(ladderkern.BackendUnavailable, match="it serves CUDA tensors, not cpu"):
        ladderkern.rms_norm(X, W)


def test_no_cuda_tensor_can_be_made_and_torch_says_why():
    with pytest.raises(RuntimeError, match=r"NVIDIA driver|CUDA-capable device|No CUDA GPUs"):
        torch.empty(1, device="cuda")
