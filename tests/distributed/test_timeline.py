"""What timeline sees of a step on gloo ranks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ladder_branches import own

from ladderkern.ladder import DelayedCommunicator, LadderStack, ProcessGroupCommunicator, timeline
from ladderkern.testing.branches import Branch, loss_of, stream

COUNT = 4
COMPUTE, SUM = 0.02, 0.01  # seconds of a branch, and of a sum


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(COMPUTE)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(COMPUTE)
        return grad


class Sleeping(Branch):
    def forward(self, normed):
        return Sleep.apply(super().forward(normed))


def seen(delay, **options):
    slow = DelayedCommunicator(ProcessGroupCommunicator(dist.group.WORLD), SUM)
    stack, x = LadderStack(own(COUNT, kind=Sleeping), delay, slow), stream()
    return timeline(lambda: loss_of(stack(x)).backward(), **options)


@pytest.mark.ranks(2)
def test_a_ladder_hides_its_sums_and_a_standard_model_does_not():
    group = dist.group.WORLD
    ladder, standard = seen(1, group=group), seen(0, group=group)
    # All but the last sum of each way, three quarters, and less where a rank is late.
    assert standard.hidden_share < 0.2 < 0.5 < ladder.hidden_share
    assert len(ladder.ranks) == 2
    assert ladder.rank == dist.get_rank()


@pytest.mark.ranks(2)
def test_every_branch_computes_and_sums_in_both_ways():
    for modules in (seen(1, group=dist.group.WORLD).modules(rank) for rank in range(2)):
        order = [*(("forward", i) for i in range(COUNT)), *(("backward", i) for i in reversed(range(COUNT)))]
        assert [(m.phase, m.branch) for m in modules] == order
        for module in modules:
            assert module.compute >= COMPUTE
            assert module.communication > SUM / 2  # the clocks differ a little
            assert 0 <= module.exposed <= module.communication


@pytest.mark.ranks(2)
def test_without_a_group_each_rank_sees_itself(tmp_path):
    lanes = seen(1, warmup=0)
    assert len(lanes.ranks) == 1
    assert "forward       0" in str(lanes)
    lanes.write_trace(path := Path(tmp_path, f"{dist.get_rank()}.json"))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("pid") == "rank 0"]
    assert {(e["tid"], e["name"]) for e in events} >= {
        (lane, f"{way} {i}") for lane in ("compute", "communication") for way in ("forward", "backward") for i in range(COUNT)
    }
    profiled = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "gloo:all_reduce"]
    assert len(profiled) == 2 * COUNT  # the lanes have the profiler's clock
    spans = [e for e in events if e["tid"] == "communication"]
    for event in profiled:
        assert any(abs(event["ts"] - e["ts"]) < 1e6 * SUM + e["dur"] for e in spans)


@pytest.mark.ranks(2)
def test_two_lanes_a_rank_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need it")
    lanes = seen(1, group=dist.group.WORLD)
    if lanes.rank == 0:
        lanes.write_plot(path := Path(tmp_path, "lanes.png"))
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.ranks(2)
def test_sums_of_a_compiled_stack_have_no_branch():
    torch._dynamo.reset()
    stack, x = LadderStack(own(COUNT), 1, dist.group.WORLD), stream().detach()
    stack.compile(backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        (lanes,) = timeline(lambda: stack(x)).ranks
    assert [interval.name for interval in lanes.communication] == [None] * COUNT
    assert lanes.other == ()


@pytest.mark.ranks(2)
def test_collectives_of_others_are_seen_but_not_counted():
    lanes = timeline(lambda: dist.all_reduce(torch.ones(3)), group=dist.group.WORLD)
    assert [len(rank.other) for rank in lanes.ranks] == [1, 1]
    assert [rank.communication for rank in lanes.ranks] == [(), ()]
    assert lanes.hidden_share != lanes.hidden_share


@pytest.mark.ranks(2)
def test_a_step_that_fails_leaves_no_marks_behind():
    communicator = ProcessGroupCommunicator(dist.group.WORLD)
    stack, x = LadderStack(own(COUNT), 1, communicator), stream()

    def step():
        stack(x)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        timeline(step, warmup=0)
    assert stack._exchange().communicator is communicator
