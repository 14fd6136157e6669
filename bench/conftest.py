"""The bench's ground rules: one allocator setting for all peers, a gate of tests, and a report of ratios alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import harness`: bench/ is no package

import harness

import ladderkern

ROOT = Path(__file__).resolve().parent.parent
QUICK = os.environ.get("LADDERKERN_BENCH_QUICK", "0") not in ("", "0")
UNCHECKED = os.environ.get("LADDERKERN_BENCH_UNCHECKED", "0") not in ("", "0")

# The quick tests of each feature: bench/test_<feature>.py runs only when they pass.
QUICK_TESTS = {
    "spam": ("published", "optimizer", "masks", "determinism"),
    "discrepancy": ("published", "loss", "joint", "linear", "reductions", "native_determinism"),
    "prm": ("published", "reference", "scores", "gather", "adapters", "select", "evaluate"),
    "ladder": ("reference", "norm", "ops", "stack", "comm"),
}
GATES = {feature: tuple(f"tests/{feature}/test_{name}.py" for name in names) for feature, names in QUICK_TESTS.items()}
PEER_PACKAGES = ("pytorch_optimizer", "pytest-benchmark")

_rows = pytest.StashKey[list]()
_malloc = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ladderkern bench")
    group.addoption("--csv", metavar="PATH", type=Path, help="write the ratios with versions and machine to this file")
    group.addoption("--strict-targets", action="store_true", help="fail the run where a target is missed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # pytest-benchmark's own table holds bare times
    config.stash[_rows] = []
    config.stash[_malloc] = harness.keep_freed_memory()


def machine() -> dict[str, Any]:
    """Where the numbers come from, with the versions of the peers and the sizes."""
    return {**harness.machine(PEER_PACKAGES), "sizes": "quick" if QUICK else "full"}


def pytest_report_header(config: pytest.Config) -> list[str]:
    where = machine()
    lines = [
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads",
        f"native library: {where['native']}; backend: {where['backend']}",
        ", ".join(f"{name.removesuffix(' version')} {value}" for name, value in where.items() if "version" in name),
        config.stash[_malloc],
    ]
    if not ladderkern.info()["native"].startswith("loaded"):
        lines.append("NOTE: ladderkern runs on its plain PyTorch reference here; the targets are for the native library")
    if QUICK:
        lines.append("LADDERKERN_BENCH_QUICK: small sizes and few rounds; a smoke test, the ratios mean nothing")
    if UNCHECKED:
        lines.append("LADDERKERN_BENCH_UNCHECKED: the tests of what is timed were not run")
    return [f"bench: {line}" for line in lines]


@pytest.fixture(scope="session")
def gate() -> Any:
    """Run a feature's quick tests, once a session: returns what is wrong with them, "" where nothing is."""
    verdicts: dict[str, str] = {}

    def verdict(feature: str) -> str:
        if feature not in verdicts:
            verdicts[feature] = "" if UNCHECKED else _run_tests(GATES[feature])
        return verdicts[feature]

    return verdict


def _run_tests(files: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not interpreter", "-p", "no:cacheprovider", *files]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
    return f"not timed: {' '.join(files)} must pass first (or set LADDERKERN_BENCH_UNCHECKED=1):\n{tail}"


@pytest.fixture(autouse=True)
def _tests_are_green(request: pytest.FixtureRequest, gate: Any) -> None:
    wrong = gate(request.path.stem.removeprefix("test_"))
    if wrong:
        pytest.fail(wrong, pytrace=False)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Any:
    """Add rows to the report at the end, and to what --benchmark-json keeps of this benchmark."""

    def add(*rows: harness.Row) -> None:
        request.config.stash[_rows].extend(rows)
        if "benchmark" in request.fixturenames:
            benchmark = request.getfixturevalue("benchmark")
            benchmark.extra_info.setdefault("ratios", []).extend(row.record() for row in rows)

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[_rows]
    if not rows:
        return
    terminalreporter.section("ratios")
    for line in harness.table(rows):
        terminalreporter.write_line(line)
    verdicts = [row.verdict for row in rows]
    terminalreporter.write_line(f"\n{verdicts.count('met')} targets met, {verdicts.count('missed')} missed")
    terminalreporter.write_line("control: one peer built twice, so 1 but for noise and the place of its memory")
    terminalreporter.write_line(
        "of limit: least traffic at the bandwidth of a plain loop (stream.c, norm_stream.c), over time taken"
    )
    if config.option.csv:
        harness.write_csv(config.option.csv, rows, machine())
        terminalreporter.write_line(f"written: {config.option.csv}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    missed = any(row.verdict == "missed" for row in session.config.stash[_rows])
    if missed and session.config.option.strict_targets and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
