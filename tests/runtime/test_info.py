"""explain(), info() and what importing the package costs."""

import os
import subprocess
import sys

import pytest
import torch

import ladderkern
from ladderkern.runtime.library import NATIVE

KEYS = ["ladderkern", "python", "torch", "backend", "native", "triton", "cuda library", "gpu", "nccl", "gloo"]
OPS = [torch.ops.ladderkern.spam_step_.default, torch.ops.ladderkern.spam_step_.reference, "spam_step_"]


def python(*command):
    kept = {k: v for k, v in os.environ.items() if k not in ("LADDERKERN_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run([sys.executable, *command], env=kept, capture_output=True, text=True)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_explain_names_the_backend_that_serves_and_why_not_a_better_one(op):
    with ladderkern.backend("auto"):
        line = ladderkern.explain(op, torch.zeros(1))
    if NATIVE.loaded:
        assert line == "spam_step_ on cpu: native"
    else:
        assert line == f"spam_step_ on cpu: reference (not native: {NATIVE.reason})"


def test_explain_without_tensors_means_cpu():
    assert ladderkern.explain("spam_step_") == ladderkern.explain("spam_step_", torch.zeros(1))


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("reference", "reference (as asked for by name)"),
        ("cuda", "cuda (cannot serve: it serves CUDA tensors, not cpu)"),
    ],
)
def test_explain_speaks_of_the_backend_asked_for(name, ending):
    with ladderkern.backend(name):
        assert ladderkern.explain("spam_step_") == f"spam_step_ on cpu: {ending}"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves CPU tensors")
def test_explain_says_what_triton_needs():
    with ladderkern.backend("triton"):
        assert "TRITON_INTERPRET=1" in ladderkern.explain("spam_step_")


def test_explain_on_another_device_says_so():
    with ladderkern.backend("auto"):
        line = ladderkern.explain("spam_step_", torch.zeros(1, device="meta"))
    assert line.startswith("spam_step_ on meta: ")
    assert "\n" not in line


@pytest.mark.parametrize("op", ["spam", "", torch.ops.aten.add.Tensor], ids=str)
def test_explain_refuses_what_is_no_op_of_ours(op):
    with pytest.raises(ValueError, match=r"op must be one of .*spam_step_"):
        ladderkern.explain(op)


def test_explain_knows_every_public_op():
    assert ladderkern.explain("spam_update").startswith("spam_update on cpu: ")


def test_info_has_its_keys_in_order_and_text_for_each():
    info = ladderkern.info()
    assert list(info) == KEYS
    assert all(isinstance(value, str) and value for value in info.values())
    assert info["ladderkern"] == ladderkern.__version__
    assert torch.__version__ in info["torch"]
    assert sys.version.split()[0] in info["python"]


def test_info_tells_the_cpu_tier_or_why_there_is_none():
    native = ladderkern.info()["native"]
    if NATIVE.loaded:
        assert native.split()[-1] in ("baseline", "avx2", "avx512")
    else:
        assert native == NATIVE.reason


def test_info_tells_the_backend_in_force():
    with ladderkern.backend("reference"):
        assert ladderkern.info()["backend"] == "reference"


def test_the_command_prints_what_info_returns():
    done = python("-m", "ladderkern", "info")
    assert done.returncode == 0, done.stderr
    assert all(key in done.stdout for key in KEYS)
    assert ladderkern.__version__ in done.stdout


def test_importing_and_asking_does_not_import_triton_or_what_the_extras_bring():
    command = """
import sys, torch
before = set(sys.modules)
import ladderkern
ladderkern.info(), ladderkern.explain("spam_step_"), ladderkern.spam.mask((16, 16), 0.5)
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"triton", "transformers", "matplotlib", "tqdm", "pytest", "click"}))
"""
    done = python("-c", command)  # an optimizer's construction imports Triton: torch.optim does, for torch.compile
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_all_is_the_public_api():
    assert len(set(ladderkern.__all__)) == len(ladderkern.__all__)
    assert all(hasattr(ladderkern, name) for name in ladderkern.__all__)
    public = {name for name in vars(ladderkern) if not name.startswith("_")}
    assert public - {"runtime"} <= {*ladderkern.__all__, "testing", "cli"}
