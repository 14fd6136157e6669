"""Two Python threads at once, each with its own tensors: every op gives the bits that it gives alone."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours

from jobs import JOBS, fingerprint

ROUNDS = 3


@pytest.fixture(autouse=True)
def often_interrupted():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*functions):
    """What each function returned, called ROUNDS times in a thread of its own; the threads start together."""
    start, results = threading.Barrier(len(functions)), [[] for _ in functions]

    def run(function, result):
        start.wait()
        for _ in range(ROUNDS):
            result.append(function())

    threads = [threading.Thread(target=run, args=pair) for pair in zip(functions, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(result) == ROUNDS for result in results)  # else a thread raised
    return [set(result) for result in results]


@pytest.mark.parametrize("name", JOBS)
def test_an_op_in_two_threads_gives_the_bits_of_one(backend, thread_count, name):
    thread_count(2)  # each has a pool of its own
    alone = fingerprint(name, backend)
    assert at_once(*[lambda: fingerprint(name, backend)] * 2) == [{alone}, {alone}]


def test_different_ops_and_backends_in_threads_do_not_mix(native):
    pairs = [("spam", "native"), ("joint", "reference"), ("norm", "native"), ("prm", "reference")]
    alone = [{fingerprint(*pair)} for pair in pairs]
    assert at_once(*[lambda pair=pair: fingerprint(*pair) for pair in pairs]) == alone


def test_the_first_calls_of_a_process_may_be_in_threads(native):
    command = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
from jobs import JOBS, fingerprint
start, found = threading.Barrier(2 * len(JOBS)), []
def run(name):
    start.wait()
    found.append(f"{{name}} {{fingerprint(name, 'native')}}")
threads = [threading.Thread(target=run, args=(name,)) for name in JOBS for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("\\n".join(found))
"""
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} {fingerprint(name, 'native')}" for name in [*JOBS, *JOBS])
