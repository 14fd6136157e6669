"""Which op the CUDA library serves, and what is said where it does not: no GPU is needed to know."""

import pytest

from ladderkern.runtime import backend as backends
from ladderkern.runtime.library import OPS, CudaStatus

SERVED = ["spam_step_", "prm_scores", "add_rms_norm", "add_rms_norm_backward", "rms_norm", "rms_norm_backward"]


@pytest.fixture(params=[CudaStatus(True, "", "13.0"), CudaStatus(False, "failed to load: no such file")], ids=["loaded", "not"])
def status(request, monkeypatch):
    monkeypatch.setattr(backends, "CUDA", request.param)
    return request.param


@pytest.mark.parametrize("name", SERVED)
def test_the_launch_bound_ops_are_served_where_the_library_is_loaded(name, status):
    expected = "" if status.loaded else "the CUDA library failed to load: no such file"
    assert backends._why_not(OPS[name], "cuda", "cuda") == expected
    assert "not cpu" in backends._why_not(OPS[name], "cuda", "cpu")


@pytest.mark.parametrize("name", sorted(set(OPS) - set(SERVED)))
def test_other_ops_say_what_they_are_written_for(name, status):
    reason = backends._why_not(OPS[name], "cuda", "cuda")
    assert reason.startswith("the op is written for ")
    assert "cuda" not in reason
