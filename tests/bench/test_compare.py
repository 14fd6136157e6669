"""bench/compare.py: what is a regression, and two revisions end to end."""

import importlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"

SLOWED = """
import functools as _functools, time as _time
_fast = score_steps
@_functools.wraps(_fast)
def score_steps(*args, **options):
    _time.sleep(0.05)
    return _fast(*args, **options)
"""


@pytest.fixture(scope="module")
def compare():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("compare")
    sys.path.remove(str(BENCH))


def visits(compare, seed, slower, noise, count=24):
    """As from the three processes: each ratio with a noise of its own, the head's times ``slower``."""
    draw = random.Random(seed)
    ratios = [(1.0, slower, 1.0) for _ in range(count)]
    names = (compare.BASE, compare.HEAD, compare.AGAIN)
    return [{n: r * draw.lognormvariate(0, noise) for n, r in zip(names, each, strict=True)} for each in ratios]


def test_identical_code_is_hardly_ever_called_slower_however_noisy_the_machine(compare):
    for noise in (0.002, 0.02, 0.2):
        verdicts = [compare.judged("c", visits(compare, seed, 1.0, noise), 0.0).verdict for seed in range(300)]
        assert verdicts.count("slower") <= 3, noise  # a hundredth, were the control not there


def test_a_difference_beyond_noise_is_named(compare):
    for seed in range(30):
        assert compare.judged("c", visits(compare, seed, 1.1, 0.02), 0.03).verdict == "slower"
        assert compare.judged("c", visits(compare, seed, 1 / 1.1, 0.02), 0.03).verdict == "faster"


def test_a_difference_below_the_tolerance_is_none(compare):
    assert compare.judged("c", visits(compare, 0, 1.02, 0.001), 0.03).verdict == "same"
    assert compare.judged("c", visits(compare, 0, 1.02, 0.001), 0.005).verdict == "slower"


def test_a_base_that_differs_from_itself_raises_the_noise(compare):
    found = visits(compare, 0, 1.1, 0.001)
    for visit in found:
        visit[compare.AGAIN] *= 1.2
    judged = compare.judged("c", found, 0.03)
    assert judged.noise > 0.19
    assert judged.verdict == "same"


@pytest.mark.parametrize(("count", "dropped"), [(7, 0), (10, 0), (11, 1), (24, 5)])
def test_the_ends_of_an_interval_are_the_order_statistics_of_a_hundredth(compare, count, dropped):
    # P(more than n - k of n lie on one side) <= 1 %, by the binomial distribution of a half.
    assert compare.Interval.of(range(count)) == ((count - 1) / 2, dropped, count - 1 - dropped)


@pytest.fixture
def clone(tmp_path):
    """This repository, with a second commit that slows ``score_steps`` by 50 ms."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    home = tmp_path / "clone"

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], check=True, capture_output=True)

    git("clone", "-q", "--shared", str(ROOT), str(home))
    with (home / "ladderkern" / "prm" / "__init__.py").open("a") as file:
        file.write(SLOWED)
    git("-C", str(home), "commit", "-qam", "slower")
    return home


def run(clone, *arguments):
    command = [sys.executable, str(BENCH / "compare.py"), *arguments, "--repository", str(clone)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"LADDERKERN_BUILD_NATIVE": "0", "OMP_NUM_THREADS": "1"}  # plain PyTorch: nothing to compile
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_slower_revision_ends_with_one_and_its_mirror_with_nought(clone):
    options = ["--bench", "prm", "--launches", "1", "--visits", "7", "--rounds", "1"]
    slower = run(clone, "HEAD~1", "HEAD", *options)
    assert slower.returncode == 1, slower.stdout + slower.stderr
    assert slower.stdout.splitlines()[-2].endswith("slower")
    faster = run(clone, "HEAD", "HEAD~1", *options)
    assert faster.returncode == 0, faster.stdout + faster.stderr
    assert faster.stdout.splitlines()[-2].endswith("faster")


def test_what_cannot_be_compared_ends_with_two_and_says_why(clone):
    assert "no such revision: nowhere" in (lost := run(clone, "nowhere")).stderr
    assert lost.returncode == 2
    unknown = run(clone, "HEAD", "HEAD", "--bench", "nothing", "--launches", "1", "--visits", "7")
    assert unknown.returncode == 2
    assert "no such case: nothing; there are spam-dense" in unknown.stderr
    few = run(clone, "HEAD", "HEAD", "--launches", "1", "--visits", "6")
    assert few.returncode == 2
    assert "at least 7" in few.stderr
