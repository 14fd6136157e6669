"""Calibrating a real group: every rank learns the same numbers, and they are those of the link."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from ladderkern.ladder import DelayedCommunicator, ProcessGroupCommunicator, RecordingCommunicator, calibrate, predict
from ladderkern.ladder.hardware import KIB, MIB


@pytest.mark.ranks(2, 3)
def test_every_rank_learns_the_same_and_can_predict_with_it(world_size):
    found = calibrate(dist.group.WORLD, (64 * KIB, MIB, 4 * MIB), repeats=3, warmup=1)
    everyone = [None] * world_size
    dist.all_gather_object(everyone, found)
    assert everyone == [found] * world_size
    assert (found.world_size, found.sizes) == (world_size, (64 * KIB, MIB, 4 * MIB))
    assert all(seconds > 0 for seconds in found.seconds)
    assert found.off == pytest.approx(
        max(abs(found.fit.seconds(size) / s - 1) for size, s in zip(found.sizes, found.seconds, strict=True))
    )
    assert predict("8b", 2, link=found.link()).run.all_reduce > 0


@pytest.mark.ranks(2)
def test_a_latency_that_is_added_is_found_again():
    delay = 0.04  # far above what gloo takes on one machine, and a busy machine only adds to it
    communicator = DelayedCommunicator(ProcessGroupCommunicator(dist.group.WORLD), delay)
    found = calibrate(communicator, (KIB, 16 * KIB), dtype=torch.float32, repeats=3, warmup=1)
    assert all(seconds >= delay for seconds in found.seconds)
    assert found.fit.alpha > delay / 2


@pytest.mark.ranks(2)
def test_each_size_is_summed_as_often_as_asked_and_one_after_another():
    communicator = RecordingCommunicator(ProcessGroupCommunicator(dist.group.WORLD))
    calibrate(communicator, (KIB, 2 * KIB), repeats=4, warmup=2)
    assert [event.kind for event in communicator.events] == ["launch", "wait"] * 2 * (4 + 2)


@pytest.mark.ranks(3)
def test_a_part_of_the_ranks_can_be_calibrated(world_size):
    pair = dist.new_group([0, 2])
    if dist.get_rank() != 1:
        assert calibrate(pair, (KIB, 4 * KIB), repeats=1, warmup=0).world_size == 2
    else:
        with pytest.raises(ValueError, match="group must hold this rank"):
            calibrate(pair)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("sizes", [(), (KIB,), (KIB, KIB), (1, KIB)], ids=str)
def test_two_sizes_are_needed(sizes):
    with pytest.raises(ValueError, match="sizes must be at least two different numbers of bytes from 2 on"):
        calibrate(dist.group.WORLD, sizes)
