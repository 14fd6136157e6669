"""What every folder of tests shares: which backends are in play here, and a process in a known state."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ladderkern
from ladderkern.runtime.library import NATIVE
from ladderkern.runtime.text import text_table

sys.path.insert(0, str(Path(__file__).parent))  # `import device`: with --import-mode=importlib tests see no neighbours


def pytest_addoption(parser):
    parser.addoption("--tables", action="store_true", help="print the tables that tests fill by table_row")


def pytest_collection_modifyitems(items):
    if "LADDERKERN_TEST_ON" in os.environ:  # tests/device.py
        from device import redirect_launchers

        redirect_launchers()
        return
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


def recorded(terminalreporter, name):
    """What tests gave to record_property under ``name``, in order; of the workers of pytest-xdist too."""
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    calls = (report for report in reports if getattr(report, "when", "") == "call")
    return [value for report in calls for key, value in report.user_properties if key == name]


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--tables"):
        return
    tables = {}
    for title, heading, cells in recorded(terminalreporter, "table_row"):
        tables.setdefault((title, tuple(heading)), []).append(cells)
    for (title, heading), rows in tables.items():
        terminalreporter.section(title)
        terminalreporter.write_line(text_table(heading, rows))


@pytest.fixture
def table_row(record_property):
    """Adds a line to a table that ``--tables`` prints at the end of the run: (title, heading, cells)."""

    def add(title, heading, cells):
        record_property("table_row", (title, list(heading), [str(cell) for cell in cells]))

    return add


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


@pytest.fixture(scope="session")
def math_module():
    """The formulas of csrc/math, callable from Python (tests/native)."""
    built = sorted((Path(__file__).parents[1] / "build" / "tests").glob("ladderkern_math_test*.so"))
    if not built:
        pytest.skip("the test module is not built (LADDERKERN_BUILD_TESTS=1)")
    spec = importlib.util.spec_from_file_location("ladderkern_math_test", built[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def thread_count():
    """Sets the number of threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def assert_same_for_threads(thread_count):
    """``assert_same_for_threads(function, *counts)``: it returns the same with each number of threads."""

    def check(function, *counts):
        results = set()
        for count in counts:
            thread_count(count)
            results.add(function())
        assert len(results) == 1

    return check


TIERS = {
    "baseline": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
}


@pytest.fixture(params=list(TIERS))
def tier(request, native):
    """Each tier that this CPU can run, by name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    if TIERS[request.param] - flags:
        pytest.skip(f"this CPU lacks {', '.join(sorted(TIERS[request.param] - flags))}")
    return request.param


@pytest.fixture(scope="module")
def fingerprint_of_tier(request):
    """(tier in use, what the test file's ``fingerprint()`` returns) in a fresh process, run once for each tier."""
    known = {}

    def run(tier):
        if tier not in known:
            command = f"""
import runpy
from ladderkern.runtime.library import NATIVE
assert NATIVE.loaded, NATIVE.reason
print(NATIVE.tier, runpy.run_path({str(request.path)!r})["fingerprint"]())
"""
            environment = {k: v for k, v in os.environ.items() if k not in ("LADDERKERN_CPU_ISA", "LADDERKERN_BACKEND")}
            environment |= {"OMP_NUM_THREADS": "1", **({"LADDERKERN_CPU_ISA": tier} if tier else {})}
            done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            known[tier] = done.stdout.split()
        return known[tier]

    return run
