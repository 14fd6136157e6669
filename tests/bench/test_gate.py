"""The bench times nothing whose tests are red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def house(tmp_path):
    """A copy of bench/ beside quick tests of its own, which all pass."""
    shutil.copytree(ROOT / "bench", tmp_path / "bench", ignore=shutil.ignore_patterns("results", "__pycache__"))
    (tmp_path / "tests" / "prm").mkdir(parents=True)
    for name in ("published", "reference", "scores", "gather", "adapters", "select", "evaluate"):
        (tmp_path / "tests" / "prm" / f"test_{name}.py").write_text(f"def test_{name}():\n    assert True\n")
    return tmp_path


def bench(house, unchecked="0"):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "bench/test_prm.py", "-k", "choosing"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"LADDERKERN_BENCH_QUICK": "1", "LADDERKERN_BENCH_UNCHECKED": unchecked, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True)


def redden(house):
    (house / "tests" / "prm" / "test_scores.py").write_text("def test_scores():\n    assert 1 == 2\n")


def test_ratios_are_printed_where_the_tests_are_green(house):
    done = bench(house)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best_of_n, 10 problems x 8" in done.stdout


def test_nothing_is_timed_where_one_test_is_red(house):
    redden(house)
    done = bench(house)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not timed: tests/prm/test_published.py" in done.stdout
    assert "assert 1 == 2" in done.stdout
    assert "best_of_n, 10 problems" not in done.stdout


def test_nothing_is_timed_where_a_test_file_is_missing(house):
    (house / "tests" / "prm" / "test_select.py").unlink()
    assert "not timed" in bench(house).stdout


def test_a_run_without_the_gate_says_so(house):
    redden(house)
    done = bench(house, unchecked="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LADDERKERN_BENCH_UNCHECKED: the tests of what is timed were not run" in done.stdout
