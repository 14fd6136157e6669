"""All-reduces of a ladder are in flight while branches compute: the order of launches, computes and waits, on real ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ladder_branches import late, own, recorded
from torch.utils._python_dispatch import TorchDispatchMode

from ladderkern.ladder import LadderStack, ProcessGroupCommunicator, RecordingCommunicator, column_linear
from ladderkern.testing.branches import DELAYS, Branch, loss_of, stream

EACH_DELAY = pytest.mark.parametrize("case", DELAYS)


class Order:
    """Where in the record each event stands; each happened once."""

    def __init__(self, events):
        self.at = {(event.kind, *event.name): place for place, event in enumerate(events)}
        assert len(self.at) == len(events), "an event happened twice"

    def before(self, *chain):
        places = [self.at[event] for event in chain]
        assert places == sorted(places), list(zip(chain, places, strict=True))


def record(delay, compiled=False):
    communicator, modules, x = recorded(), own(), stream()
    stack = LadderStack(modules, delay, communicator)
    if compiled:
        stack.compile_branches(backend="aot_eager", fullgraph=True)
    loss_of(stack(x)).backward()
    assert len(communicator.events) == 3 * 2 * len(modules)  # compute, launch and wait, each way
    return Order(communicator.events), stack.delay


@pytest.mark.ranks(2)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager branches", "compiled branches"])
def test_a_ladder_computes_between_each_launch_and_its_wait(compiled):
    order, delays = record(1, compiled)
    last = len(delays) - 1
    for i in range(last):
        for phase, first, second in (("forward", i, i + 1), ("backward", i + 1, i)):
            order.before(
                ("launch", phase, first), ("compute", phase, second), ("launch", phase, second), ("wait", phase, first)
            )


@pytest.mark.ranks(2)
def test_at_most_two_sums_of_a_ladder_are_in_flight():
    order, _ = record(1)
    for i in range(2, 6):
        order.before(("wait", "forward", i - 2), ("compute", "forward", i))
        order.before(("wait", "backward", i), ("compute", "backward", i - 2))


@pytest.mark.ranks(2)
@EACH_DELAY
def test_every_wait_stands_just_before_what_needs_the_sum(case):
    order, delays = record(DELAYS[case])
    sources = [max(i - d, 0) for i, d in enumerate(delays)]
    for i in range(len(delays)):
        # In the forward: the first branch whose stream holds the output of branch i.
        reader = next((j for j, source in enumerate(sources) if source > i), None)
        order.before(*(("compute", "forward", j) for j in range(i, reader or len(delays))), ("wait", "forward", i))
        if reader is not None:
            order.before(("wait", "forward", i), ("compute", "forward", reader))
        # In the backward: the gradient of the stream that branch i read is needed by the branch that wrote to it last.
        order.before(*(("compute", "backward", j) for j in range(i, sources[i] - 1, -1)), ("wait", "backward", i))
        if sources[i] > 0:
            order.before(("wait", "backward", i), ("compute", "backward", sources[i] - 1))


@pytest.mark.ranks(2)
def test_gradients_are_complete_when_parameters_get_them():
    """AccumulateGrad runs before any other node that is ready: a sum in flight must not reach it."""
    modules, x = own(), stream()
    stack = LadderStack(modules, [1, 1, 1, 0, 2, 1], late())
    seen = {}
    for name, leaf in [("x", x), *stack.named_parameters()]:
        leaf.register_post_accumulate_grad_hook(lambda leaf, name=name: seen.update({name: leaf.grad.clone()}))
    loss_of(stack(x)).backward()
    assert len(seen) == 1 + len(list(stack.parameters()))
    for name, leaf in [("x", x), *stack.named_parameters()]:
        assert torch.isfinite(seen[name]).all(), name
        torch.testing.assert_close(seen[name], leaf.grad, rtol=0, atol=0)


class LinearBranch(Branch):
    """A branch whose entry is a linear layer, the only one with a weight to train."""

    layer = staticmethod(column_linear)

    def forward(self, normed):
        (part,) = self.parts
        return torch.sigmoid(self.layer(normed, part.down)) @ part.up.detach().t()


class WeightGradients(TorchDispatchMode):
    """Notes products of the shape of a weight."""

    def __init__(self, shape, note):
        super().__init__()
        self.shapes, self.note = (shape, shape[::-1]), note

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        if op is torch.ops.aten.mm.default and tuple(result.shape) in self.shapes:
            self.note("weight gradient", None)
        return result


@pytest.mark.ranks(2)
@pytest.mark.parametrize("split", [False, True], ids=["F.linear", "column_linear"])
def test_weight_gradients_at_the_entry_of_a_branch_are_computed_behind_its_sum(split):
    communicator = RecordingCommunicator(ProcessGroupCommunicator(dist.group.WORLD))
    modules, x = own(kind=LinearBranch), stream()
    for module in modules:
        module.layer = column_linear if split else F.linear
    loss = loss_of(LadderStack(modules, 1, communicator)(x[:, :2]))
    communicator.events.clear()
    with WeightGradients(tuple(modules[0].parts[0].down.shape), communicator.note):
        loss.backward()
    kinds = [event.kind for event in communicator.events if event.kind != "wait"]
    each = ["compute", "launch", "weight gradient"] if split else ["compute", "weight gradient", "launch"]
    assert kinds == each * len(modules)
