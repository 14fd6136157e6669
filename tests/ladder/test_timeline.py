"""Lanes read from traces, of devices too."""

import pytest

from ladderkern.ladder import RecordingCommunicator, timeline
from ladderkern.ladder.handles import Collective
from ladderkern.ladder.lanes import Interval, Lanes, read_lanes
from ladderkern.ladder.timeline import Timeline

ZERO = 5_000_000.0  # microseconds at which a trace begins
FORWARD = [Collective("forward", i) for i in range(3)]


def event(name, start, end, cat="user_annotation", **args):
    return {"ph": "X", "name": name, "cat": cat, "ts": ZERO + start, "dur": end - start, "args": args}


def on_host(*events):
    return [event("ladder::step", 0, 1000), *events, {"ph": "M", "name": "process_name"}]


def microseconds(intervals):
    return [(interval.name, round(1e6 * interval.start), round(1e6 * interval.end)) for interval in intervals]


# Two branches of a ladder and the drain: waits and sums lie where a run of gloo has them.
HOST = [
    event("ladder::compute forward 0", 100, 101),
    event("ladder::launch forward 0", 200, 210),
    event("ladder::compute forward 1", 230, 231),
    event("gloo:all_reduce", 212, 300),
    event("ladder::launch forward 1", 400, 410),
    event("ladder::wait forward 0", 412, 414),
    event("gloo:all_reduce", 412, 600),
    event("ladder::wait forward 1", 450, 610),
]


def test_host_time_belongs_to_the_branch_that_started_last():
    lanes = read_lanes(on_host(*HOST))
    assert microseconds(lanes.compute) == [
        (None, 0, 100),
        (FORWARD[0], 100, 200),
        (FORWARD[0], 210, 230),
        (FORWARD[1], 230, 400),
        (FORWARD[1], 410, 412),
        (None, 414, 450),
        (None, 610, 1000),
    ]
    assert microseconds(lanes.communication) == [(FORWARD[0], 212, 300), (FORWARD[1], 412, 600)]
    assert not lanes.device


def test_what_waits_expose_is_not_hidden():
    seen = Timeline((read_lanes(on_host(*HOST)),), 0, {})
    assert seen.hidden_share == pytest.approx(1 - (2 + 150) / (88 + 188))
    first, second = seen.modules()
    assert (first.phase, first.branch, first.exposed) == ("forward", 0, 0.0)
    assert first.compute == pytest.approx(120e-6)
    assert second.communication == pytest.approx(188e-6)
    assert second.exposed == pytest.approx(152e-6)
    assert "hidden share of the communication on all ranks: 45%" in str(seen)


def test_a_delayed_sum_lasts_until_it_is_due():
    late = [event("ladder::due 0.000100", 211, 211), event("ladder::due 0.000300", 411, 411)]
    lanes = read_lanes(on_host(*HOST, *late))
    assert microseconds(lanes.communication) == [(FORWARD[0], 200, 311), (FORWARD[1], 400, 711)]


def test_functional_collectives_need_no_marks():
    calls = [
        event("_c10d_functional::all_reduce_", 100, 110, cat="cpu_op"),
        event("gloo:all_reduce", 105, 300),
        event("_c10d_functional::wait_tensor", 250, 310, cat="cpu_op"),
        event("gloo:all_reduce", 400, 420),
    ]
    lanes = read_lanes(on_host(*calls))
    assert microseconds(lanes.compute) == [(None, 0, 100), (None, 110, 250), (None, 310, 1000)]
    assert microseconds(lanes.communication) == [(None, 105, 300)]
    assert microseconds(lanes.other) == [(None, 400, 420)]


def launched(name, at, start, end, correlation):
    """A kernel, and the call that launched it."""
    call = event("cudaLaunchKernel", at, at + 5, cat="cuda_runtime", correlation=correlation)
    return [call, event(name, start, end, cat="kernel", correlation=correlation)]


def test_kernels_belong_to_what_the_host_was_at_when_it_launched_them():
    device = [
        *launched("gemm", 110, 1100, 1300, 1),
        *launched("ncclDevKernel_AllReduce", 205, 1300, 1500, 2),
        *launched("gemm", 240, 1310, 1450, 3),
        *launched("multimem_all_reduce", 405, 1500, 1600, 4),
        *launched("add_norm", 415, 1600, 1620, 5),
        *launched("ncclDevKernel_AllGather", 700, 1650, 1700, 6),
        *launched("of another step", -50, 900, 950, 7),
    ]
    lanes = read_lanes(on_host(*HOST, *device))
    assert lanes.device
    assert lanes.seconds == pytest.approx(1700e-6)
    assert microseconds(lanes.compute) == [(FORWARD[0], 1100, 1300), (FORWARD[1], 1310, 1450), (None, 1600, 1620)]
    assert microseconds(lanes.communication) == [(FORWARD[0], 1300, 1500), (FORWARD[1], 1500, 1600)]
    assert microseconds(lanes.other) == [(None, 1650, 1700)]
    assert Timeline((lanes,), 0, {}).hidden_share == pytest.approx(140 / 300)


def test_exposed_is_what_no_interval_covers():
    compute = tuple(Interval(None, *span) for span in [(0.0, 2.0), (1.0, 1.5), (3.0, 4.0), (6.0, 9.0)])
    lanes = Lanes(9.0, compute, (), (), device=True)
    assert lanes.exposed(Interval(None, 0.5, 7.0)) == [(2.0, 3.0), (4.0, 6.0)]
    assert lanes.exposed(Interval(None, 6.5, 7.0)) == []
    assert lanes.exposed(Interval(None, 9.5, 9.75)) == [(9.5, 9.75)]


def test_a_trace_without_a_step_is_refused():
    with pytest.raises(ValueError, match="must be those of a trace in which timeline has marked a step"):
        read_lanes(HOST)


@pytest.mark.parametrize("warmup", [-1, 0.5])
def test_warmup_must_be_a_count(warmup):
    with pytest.raises(ValueError, match="warmup must be an int of at least 0, got"):
        timeline(lambda: None, warmup=warmup)


def test_a_group_must_be_one():
    with pytest.raises(ValueError, match=r"group must be None where torch\.distributed is not initialised"):
        timeline(lambda: None, group="world")


def test_a_step_runs_once_more_than_it_warms_up():
    calls = []
    seen = timeline(lambda: calls.append(1), warmup=2)
    assert len(calls) == 3
    assert seen.modules() == []
    assert "nan" in str(seen)


def test_without_ranks_a_record_may_stand_for_them():
    from ladderkern.ladder import LadderStack
    from ladderkern.testing.branches import branches, stream

    stack = LadderStack(branches([0], 3), 1, RecordingCommunicator())
    modules = timeline(lambda: stack(stream())).modules()
    assert [(m.phase, m.branch, m.communication) for m in modules] == [("forward", i, 0.0) for i in range(3)]
