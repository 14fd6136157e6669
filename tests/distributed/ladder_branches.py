"""The branches of a test on ranks, and communicators that show what is wrong."""

from __future__ import annotations

import torch.distributed as dist

from ladderkern.ladder import DelayedCommunicator, ProcessGroupCommunicator, RecordingCommunicator
from ladderkern.testing.branches import branches


def own(count=6, **options):
    """The branches of this rank, with its part alone."""
    return branches([dist.get_rank()], count, **options)


def whole(count=6, **options):
    """The branches of one process that holds all parts."""
    return branches(range(dist.get_world_size()), count, **options)


def late():
    """Sums that hold NaN until they are waited for."""
    return DelayedCommunicator(ProcessGroupCommunicator(dist.group.WORLD), 0.001)


def recorded():
    return RecordingCommunicator(late())
