"""Communicators: handles are waited for once, the instruments tell the truth, and which communicator serves which group."""

from __future__ import annotations

import copy
import time

import pytest
import torch
import torch.distributed as dist

from ladderkern.ladder import Collective, DelayedCommunicator, LadderStack, ProcessGroupCommunicator, RecordingCommunicator
from ladderkern.ladder.comm import communicator
from ladderkern.ladder.symmetric import MIB, Seat, SymmetricMemoryCommunicator, algorithm, joined
from ladderkern.testing import floats
from ladderkern.testing.branches import assert_same_gradients, branches, gradients, loss_of, stream

NAME = Collective("backward", 7)


@pytest.mark.parametrize("make", [RecordingCommunicator, lambda: DelayedCommunicator(None, 0.0)], ids=["recording", "delayed"])
def test_a_handle_is_waited_for_once(make):
    comm = make()
    handle = comm.launch(floats((3,)), NAME)
    comm.wait(handle)
    with pytest.raises(RuntimeError, match="gradient of the input of branch 7 was waited for already"):
        comm.wait(handle)


def test_a_record_keeps_order_and_time():
    comm = RecordingCommunicator()
    before = time.perf_counter()
    comm.compute(NAME)
    comm.wait(comm.launch(floats((3,)), NAME))
    assert [(event.kind, event.name) for event in comm.events] == [("compute", NAME), ("launch", NAME), ("wait", NAME)]
    times = [before, *(event.seconds for event in comm.events), time.perf_counter()]
    assert times == sorted(times)


def test_delayed_sums_come_late_and_one_after_another():
    comm, seconds = DelayedCommunicator(None, 0.02), 0.02
    tensors = [floats((3,), seed=i) for i in range(3)]
    expected = [t.clone() for t in tensors]
    start = time.perf_counter()
    handles = [comm.launch(t, NAME) for t in tensors]
    assert time.perf_counter() - start < seconds  # a launch does not wait
    assert all(t.isnan().all() for t in tensors)
    for i, handle in enumerate(handles):
        comm.wait(handle)
        assert time.perf_counter() - start >= (i + 1) * seconds
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0)


def test_instruments_work_inside_each_other():
    outer = RecordingCommunicator(DelayedCommunicator(RecordingCommunicator(), 0.001))
    inner = outer.inner.inner
    modules, x = branches([0]), stream()
    y = LadderStack(modules, 1, outer)(x)
    expected = LadderStack(modules, 1)(x)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x, modules))
    assert [event[:2] for event in inner.events] == [event[:2] for event in outer.events]


def test_a_communicator_without_a_group_is_left_out_of_a_graph():
    modules, x = branches([0]), stream()
    stack = LadderStack(modules, 1, RecordingCommunicator())
    y = torch.compile(stack, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, LadderStack(modules, 1)(x))


def test_a_copied_model_speaks_to_the_same_ranks():
    comm = RecordingCommunicator()
    stack = copy.deepcopy(LadderStack(branches([0], 2), 1, comm))
    loss_of(stack(stream())).backward()
    assert stack.communicator is comm
    assert len(comm.events) == 2 * 2 * 3


def test_a_group_needs_an_initialised_process_group():
    assert not dist.is_initialized()
    assert communicator(None) is None
    with pytest.raises(ValueError, match="init_process_group"):
        LadderStack(branches([0], 2), 1, dist.GroupMember.WORLD or object())


class Group:
    """Of NCCL, without one."""

    def size(self):
        return 2

    def rank(self):
        return 0


@pytest.fixture
def nccl(monkeypatch):
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
    return Group()


@pytest.mark.parametrize("value", ["1", "true", "Y"])
def test_the_path_that_overlaps_nothing_is_refused(monkeypatch, nccl, value):
    monkeypatch.setenv("ENABLE_INTRA_NODE_COMM", value)
    with pytest.raises(ValueError, match="unset ENABLE_INTRA_NODE_COMM"):
        ProcessGroupCommunicator(nccl)
    monkeypatch.setenv("ENABLE_INTRA_NODE_COMM", "0")
    assert ProcessGroupCommunicator(nccl).group is nccl


@pytest.mark.parametrize(
    ("num_bytes", "dtype", "world_size", "multicast", "expected"),
    [
        (16 << 10, torch.bfloat16, 8, True, "one_shot"),
        (512 << 10, torch.float32, 8, True, "one_shot"),
        ((512 << 10) + 128, torch.bfloat16, 8, True, "multimem"),
        (MIB, torch.bfloat16, 8, False, "two_shot"),
        (MIB, torch.bfloat16, 4, False, "one_shot"),
        (64 * MIB, torch.bfloat16, 8, True, "multimem"),
        (65 * MIB, torch.bfloat16, 8, True, None),  # NCCL's
        (33 * MIB, torch.bfloat16, 4, True, None),
        (16 << 10, torch.float16, 8, True, None),  # torch has no kernel
        (16 << 10, torch.float64, 8, True, None),
        (24, torch.bfloat16, 2, True, None),  # no whole number of vectors
        (MIB + 16, torch.bfloat16, 8, True, None),  # no whole number of vectors a rank
        (16 << 10, torch.bfloat16, 3, True, None),  # no threshold is known
        (0, torch.bfloat16, 2, True, None),
    ],
)
def test_the_algorithm_follows_from_the_message_and_the_world(num_bytes, dtype, world_size, multicast, expected):
    assert algorithm(num_bytes, dtype, world_size, multicast) == expected


def test_only_ranks_of_one_host_that_nvlink_joins_use_symmetric_memory():
    seats = [Seat("a", i, tuple(0 if i == j else 18 for j in range(4)), True) for i in range(4)]
    assert joined(seats)
    assert joined([seats[1], seats[3]])
    assert not joined([*seats[:3], seats[3]._replace(host="b")])
    assert not joined([*seats[:3], seats[3]._replace(links=(18, 0, 18, 0))])  # a pair goes over PCIe
    assert not joined([seat._replace(device=0) for seat in seats])  # each process sees one device: nothing is known
    assert not joined([seat._replace(links=()) for seat in seats])


def test_messages_that_symmetric_memory_does_not_serve_go_to_the_other_communicator(nccl):
    other = RecordingCommunicator()
    comm = SymmetricMemoryCommunicator(nccl, other)
    handle = comm.launch(floats((8,)), NAME)  # on the CPU
    comm.wait(handle)
    assert [event.kind for event in other.events] == ["launch", "wait"]
    with pytest.raises(RuntimeError, match="waited for already"):
        comm.wait(handle)
