"""Data loaders whose workers call the ops, forked and spawned, after the session's own threads have worked."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))  # spawned workers are given the path, and find jobs.py by it

from jobs import JOBS, Fingerprints, fingerprint

SECONDS = 120  # a worker that takes longer hangs; the machine may be busy


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_give_the_bits_of_the_session(backend, thread_count, start):
    thread_count(2)
    expected = [fingerprint(name, backend) for name in JOBS]  # the pool of threads exists from here on
    data = Fingerprints(backend)
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start, timeout=SECONDS)
    assert list(loader) == expected
    assert torch.get_num_threads() == 2
    assert [fingerprint(name, backend) for name in JOBS] == expected


def test_an_error_in_a_worker_reaches_the_session(native):
    loader = DataLoader(Fingerprints("cuda"), num_workers=2, multiprocessing_context="fork", timeout=SECONDS)
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot serve"):
        list(loader)
