"""Ladders over NCCL; where there are not two GPUs, the same worker over gloo, so that it is known to run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("nccl_worker.py")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_ladder_over_two_ranks_gives_what_one_gives(kind):
    if kind == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("fewer than two GPUs are visible")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", WORKER, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
