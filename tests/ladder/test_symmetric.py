"""The symmetric-memory all-reduces on a GPU, in a group of one rank: how torch's ops are called, and on which stream."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from ladderkern.ladder import Collective, RecordingCommunicator, SymmetricMemoryCommunicator, symmetric
from ladderkern.testing import floats

pytestmark = pytest.mark.skipif(torch.version.cuda is None or not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture
def group():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot", "multimem"])
def test_sums_run_beside_compute_and_are_there_after_the_wait(monkeypatch, group, algorithm, dtype):
    other = RecordingCommunicator()
    comm = SymmetricMemoryCommunicator(group, other)
    tensors = [floats((n, 256), dtype, seed=n).cuda() for n in (4, 64, 16)]  # the buffer grows once
    assert comm._algorithm(tensors[0]) is None  # no threshold is known for one rank
    if algorithm == "multimem" and not comm.seats[0].multicast:
        pytest.skip("this GPU has no multicast")
    monkeypatch.setattr(symmetric, "algorithm", lambda *args: algorithm)
    expected = [t.clone() for t in tensors]
    for i, tensor in enumerate(tensors):
        torch.cuda._sleep(10_000_000)
        tensor.mul_(2)  # what a branch computes just before
        handle = comm.launch(tensor, Collective("forward", i))
        assert not handle.work.query()  # nobody has waited for the GPU
        comm.wait(handle)
        torch.testing.assert_close(tensor * 1, expected[i] * 2, rtol=0, atol=0)
    assert not other.events
