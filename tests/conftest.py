"""What every folder of tests shares: which backends are in play here, and a process in a known state."""

import os

import pytest
import torch

import ladderkern
from ladderkern.runtime.library import NATIVE


def pytest_collection_modifyitems(items):
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    skip = pytest.mark.skip(reason="the interpreter needs TRITON_INTERPRET=1, set before triton is imported")
    for item in items:
        if item.get_closest_marker("interpreter"):
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests are small: one thread is faster, and leaves the other cores to pytest-xdist."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def known_rng():
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "native"])
def backend(request):
    """The name of a backend that serves CPU tensors, in force while the test runs."""
    if request.param == "native" and not NATIVE.loaded:
        pytest.skip(f"native backend: {NATIVE.reason}")
    with ladderkern.backend(request.param):
        yield request.param


@pytest.fixture
def native():
    """The native backend, in force while the test runs."""
    if not NATIVE.loaded:
        pytest.skip(f"native backend: {NATIVE.reason}")
    with ladderkern.backend("native"):
        yield
