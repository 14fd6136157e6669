"""backend(): the choice for the process, for a context, by the environment; what cannot serve, and why."""

import asyncio
import gc
import os
import subprocess
import sys
import threading

import pytest
import torch

import ladderkern
from ladderkern.runtime.backend import current
from ladderkern.runtime.library import NATIVE

NAMES = ["auto", "reference", "native", "triton", "cuda"]


@pytest.fixture(autouse=True)
def process_choice():
    """Each test starts from, and leaves behind, the choice that it found."""
    before = current()
    yield
    ladderkern.backend(before)


def python(command, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("LADDERKERN_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run([sys.executable, "-c", command], env=kept | environment, capture_output=True, text=True)


def step():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    ladderkern.SPAM([p]).step()
    return p


def in_new_thread(function):
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_call_holds_for_the_process(name):
    ladderkern.backend(name)
    gc.collect()
    assert current() == name
    assert in_new_thread(current) == name


def test_the_latest_plain_call_counts():
    for name in NAMES:
        ladderkern.backend(name)
    assert current() == NAMES[-1]


def test_a_context_holds_inside_and_not_after():
    ladderkern.backend("reference")
    with ladderkern.backend("triton"):
        assert current() == "triton"
        with ladderkern.backend("cuda"):
            assert current() == "cuda"
        assert current() == "triton"
    assert current() == "reference"


def test_a_context_ends_with_an_exception():
    ladderkern.backend("reference")
    with pytest.raises(KeyError), ladderkern.backend("triton"):
        raise KeyError
    assert current() == "reference"


def test_a_context_holds_for_its_thread_alone():
    ladderkern.backend("reference")
    with ladderkern.backend("triton"):
        assert in_new_thread(current) == "reference"
    assert in_new_thread(current) == "reference"


def test_a_context_holds_for_its_task_alone():
    seen = []

    async def one(name):
        with ladderkern.backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append((name, current()))

    async def both():
        await asyncio.gather(one("triton"), one("cuda"))

    asyncio.run(both())
    assert len(seen) == 6
    assert all(name == found for name, found in seen)


def test_a_plain_call_inside_a_context_waits_for_its_end():
    with ladderkern.backend("triton"):
        ladderkern.backend("reference")
        assert current() == "triton"
    assert current() == "reference"


def test_one_context_object_may_be_entered_again():
    ladderkern.backend("reference")
    choice = ladderkern.backend("triton")
    for _ in range(2):
        with choice:
            assert current() == "triton"
            with choice:
                assert current() == "triton"
            assert current() == "triton"
        assert current() == "reference"


@pytest.mark.parametrize("name", ["", "Native", "cpu", None, 3])
def test_an_unknown_name_is_refused_and_the_allowed_ones_listed(name):
    ladderkern.backend("reference")
    with pytest.raises(ValueError, match="auto, reference, native, triton, cuda"):
        ladderkern.backend(name)
    assert current() == "reference"


@pytest.mark.parametrize("name", ["reference", "cuda"])
def test_the_environment_sets_the_start_value(name):
    command = "import ladderkern; from ladderkern.runtime.backend import current; print(current())"
    assert python(command, LADDERKERN_BACKEND=name).stdout.strip() == name


def test_without_the_environment_the_choice_is_auto():
    assert python("import ladderkern; print(ladderkern.info()['backend'])").stdout.strip() == "auto"


def test_an_unknown_name_in_the_environment_is_named():
    done = python("import ladderkern", LADDERKERN_BACKEND="fast")
    assert done.returncode != 0
    assert "fast" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_auto_and_reference_always_serve(name):
    with ladderkern.backend(name):
        assert (step() < 0).all()


def test_native_serves_where_it_is_built():
    with ladderkern.backend("native"):
        if NATIVE.loaded:
            assert (step() < 0).all()
        else:
            with pytest.raises(ladderkern.BackendUnavailable, match=NATIVE.reason.split(":")[0]):
                step()


def test_cuda_cannot_serve_cpu_tensors():
    with ladderkern.backend("cuda"), pytest.raises(ladderkern.BackendUnavailable, match=r"'cuda'.*spam_step_.*not cpu"):
        step()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves CPU tensors")
def test_triton_cannot_serve_cpu_tensors_without_the_interpreter():
    with ladderkern.backend("triton"), pytest.raises(ladderkern.BackendUnavailable, match=r"'triton'.*TRITON_INTERPRET=1"):
        step()


def test_a_backend_that_cannot_serve_changes_nothing():
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ladderkern.SPAM([p])
    with ladderkern.backend("cuda"), pytest.raises(ladderkern.BackendUnavailable):
        optimizer.step()
    assert torch.equal(p, torch.ones(2))
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


def test_backend_unavailable_is_a_runtime_error():
    assert issubclass(ladderkern.BackendUnavailable, RuntimeError)


def test_direct_op_calls_take_the_dispatchers_choice():
    p, g, m, v, n = torch.zeros(1), torch.ones(1), torch.zeros(1), torch.zeros(1), torch.tensor(0.0)
    scalars = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "threshold": 0.0, "seed": 0, "density_16ths": 16}
    counts = {"reset_interval": 0, "warmup_steps": 0, "unclipped_steps": 0, "indices": [0], "placement": []}
    switches = {"cycle_correction": False, "freeze_zero_variance": False, "maximize": False, "row_mask": False}
    with ladderkern.backend("cuda"):  # would raise if it were honoured
        torch.ops.ladderkern.spam_step_([p], [g], [m], [v], [n], torch.tensor(0.1), **scalars, **counts, **switches)
    assert n == 1
