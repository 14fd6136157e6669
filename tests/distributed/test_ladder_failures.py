"""Exceptions on the way, and ranks that die or are late: no handle is left in flight, nothing hangs, messages name the sum."""

from __future__ import annotations

import os
import time
from collections import Counter
from datetime import timedelta

import pytest
import torch.distributed as dist
from ladder_branches import own, recorded, whole

from ladderkern.ladder import LadderStack
from ladderkern.testing.branches import DELAYS, HIDDEN, assert_same_gradients, gradients, loss_of, recurrence, stream

TIMEOUT = 5  # seconds, of groups in which a rank fails
EACH_DELAY = pytest.mark.parametrize("case", DELAYS)


def assert_waited_once(events):
    launched, waited = (Counter(e.name for e in events if e.kind == kind) for kind in ("launch", "wait"))
    assert launched == waited
    assert launched
    assert set(launched.values()) == {1}


class Trouble(Exception):
    pass


@pytest.mark.ranks(2)
@EACH_DELAY
def test_an_exception_in_a_forward_leaves_no_sum_in_flight(case):
    for place in (1, 3, 5):
        communicator, modules, x = recorded(), own(), stream()
        stack = LadderStack(modules, DELAYS[case], communicator)
        hook = modules[place].register_forward_pre_hook(fail)
        with pytest.raises(Trouble):
            stack(x)
        assert_waited_once(communicator.events)
        hook.remove()  # and the stack is as good as new
        dense, x_dense = whole(), stream()
        expected = recurrence(dense, DELAYS[case], x_dense)
        assert_same_gradients(gradients(stack(x), x, modules), gradients(expected, x_dense, dense))


def fail(*args):
    raise Trouble


@pytest.mark.ranks(2)
@EACH_DELAY
def test_an_exception_in_a_backward_leaves_no_sum_in_flight(case):
    for place in (4, 2, 0):
        communicator, modules, x = recorded(), own(), stream()
        loss = loss_of(LadderStack(modules, DELAYS[case], communicator)(x))
        communicator.events.clear()
        modules[place].parts[0].down.register_hook(fail)
        with pytest.raises(Trouble):
            loss.backward()
        assert_waited_once(communicator.events)


@pytest.mark.ranks(2)
def test_a_backward_after_one_that_failed_is_right():
    modules, dense, x, x_dense = own(), whole(), stream(), stream()
    y = LadderStack(modules, 1, recorded())(x)
    hook = modules[2].parts[0].down.register_hook(fail)
    with pytest.raises(Trouble):
        loss_of(y).backward(retain_graph=True)
    hook.remove()
    assert_same_gradients(gradients(y, x, modules), gradients(recurrence(dense, 1, x_dense), x_dense, dense))


UNFIT = {
    "shape": (lambda output: output[..., :2], rf"branch 1 must return .* \(2, 3, {HIDDEN}\), got \(2, 3, 2\)"),
    "device": (lambda output: output.to("meta"), "branch 1 must return a tensor on the device of the stream, cpu, got meta"),
}


@pytest.mark.ranks(2)
@pytest.mark.parametrize("what", UNFIT)
def test_an_unfit_output_is_found_before_its_sum_is_launched(what):
    communicator, modules, (spoil, message) = recorded(), own(3), UNFIT[what]
    modules[1].register_forward_hook(lambda module, inputs, output: spoil(output))
    with pytest.raises(ValueError, match=message):
        LadderStack(modules, 1, communicator)(stream())
    assert_waited_once(communicator.events)
    assert {event.name.branch for event in communicator.events if event.kind == "launch"} == {0}


@pytest.mark.ranks(2)
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_rank_that_stays_away_is_noticed_within_the_timeout(way):
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    modules, x = own(), stream()
    stack = LadderStack(modules, 1, group)
    if way == "backward":
        loss = loss_of(stack(x))
    elif dist.get_rank() == 1:
        modules[3].register_forward_pre_hook(fail)
    if dist.get_rank() == 1:
        with pytest.raises((Trouble, RuntimeError)):
            stack(x) if way == "forward" else fail()
        time.sleep(2 * TIMEOUT + 1)  # as if busy with something else: its process lives
        return
    start = time.monotonic()
    name = {"forward": "forward all-reduce of the output of branch 3", "backward": "backward all-reduce of the gradient"}[way]
    with pytest.raises(RuntimeError, match=rf"{name}.*failed on rank 0 of a group of 2"):
        stack(x) if way == "forward" else loss.backward()
    assert time.monotonic() - start < 2 * TIMEOUT


def last_rank_dies(way):
    """What the ranks that live tell: seconds until the exception, and its message."""
    modules, x = own(), stream()
    stack = LadderStack(modules, 1, dist.new_group(timeout=timedelta(seconds=TIMEOUT)))
    loss_of(stack(x)).backward()  # all is well
    if dist.get_rank() == dist.get_world_size() - 1:
        if way == "forward":
            modules[3].register_forward_pre_hook(lambda *args: os._exit(9))
        else:
            modules[3].parts[0].down.register_hook(lambda grad: os._exit(9))
    start = time.monotonic()
    with pytest.raises(RuntimeError) as raised:
        loss_of(stack(x)).backward()
    return time.monotonic() - start, str(raised.value)


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("size", [2, 4])
def test_when_a_rank_dies_the_others_raise_and_name_the_sum(on_ranks, size, way):
    ranks = on_ranks.start(size)
    try:
        answers = ranks.run(__file__, last_rank_dies.__name__, {"way": way})
        for rank, (kind, _) in enumerate(answers):
            if kind == "hung":  # the machine is busy
                assert ranks.pipes[rank].poll(3 * TIMEOUT), f"rank {rank} hangs"
                answers[rank] = ranks.pipes[rank].recv()
    finally:
        ranks.kill()
    assert answers.pop()[0] == "lost"
    for rank, (kind, answer) in enumerate(answers):
        assert kind == "ok", answer
        seconds, message = answer
        assert seconds < 2 * TIMEOUT  # a rank without a link to the dead one notices last
        assert f"the {way} all-reduce of the" in message
        assert f"failed on rank {rank} of a group of {size}" in message
