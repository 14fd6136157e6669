"""A LadderStack over ranks under torch.compile: the same numbers, and waits where the ladder has them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ladder_branches import own, whole
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from ladderkern.ladder import LadderStack, ProcessGroupCommunicator
from ladderkern.testing.branches import Branch, assert_same_gradients, gradients, recurrence, stream

DELAY = [0, 1, 1, 2]
COUNT = 4


def compare(run, modules):
    """What ``run`` gives is what one process computes, with gradients and without."""
    dense, x, x_dense = whole(len(DELAY)), stream(), stream()
    expected = recurrence(dense, DELAY, x_dense)
    y = run(x)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x_dense, dense))
    with torch.no_grad():
        torch.testing.assert_close(run(x), expected.detach())


def compiled(modules, what, **options):
    """A stack of the branches, all of it or each branch compiled."""
    torch._dynamo.reset()
    counters.clear()
    stack = LadderStack(modules, DELAY, dist.group.WORLD)
    (stack.compile_branches if what == "branches" else stack.compile)(**options)
    return stack


@pytest.mark.ranks(2)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("what", ["stack", "branches"])
def test_one_graph_gives_the_same(what, backend):
    modules = own(len(DELAY))
    compare(compiled(modules, what, backend=backend, fullgraph=True), modules)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


class Breaking(Branch):
    def forward(self, normed, scale=1.0):
        torch._dynamo.graph_break()
        return super().forward(normed, scale)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("what", ["stack", "branches"])
def test_graph_breaks_inside_branches_do_no_harm(what):
    modules = own(len(DELAY), kind=Breaking)
    compare(compiled(modules, what, backend="aot_eager"), modules)
    assert counters["stats"]["unique_graphs"] > 0
    assert counters["graph_break"]


def places(lines, *patterns):
    """Of the lines that hold each pattern, in order."""
    return [[i for i, line in enumerate(lines) if pattern in line] for pattern in patterns]


def assert_late(launches, waits, products):
    """A ladder of two products a branch: each sum is waited for after the next launch, and before the products after that."""
    assert len(launches) == len(waits) == COUNT
    assert len(products) == 2 * COUNT
    for i in range(COUNT - 1):
        assert launches[i] < products[2 * i + 2] < launches[i + 1] < waits[i]
    for i in range(COUNT - 2):
        assert waits[i] < products[2 * i + 4]
    assert launches[-1] < waits[-1]


@pytest.mark.ranks(2)
def test_waits_of_a_compiled_step_of_decoding_come_as_late_as_in_a_ladder():
    torch._dynamo.reset()
    stack, x = LadderStack(own(COUNT), 1, dist.group.WORLD), stream().detach()[:, :1]
    recorded = AotEagerAndRecordGraphs()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(stack, backend=recorded, fullgraph=True)(x), stack(x))
    nodes = [str(node.target) for node in recorded.fw_graphs[0].graph.nodes]
    assert_late(*places(nodes, "c10d_functional.all_reduce", "c10d_functional.wait_tensor", "aten.mm"))


@pytest.mark.ranks(2)
def test_inductor_leaves_them_there():
    torch._dynamo.reset()
    stack, x = LadderStack(own(COUNT), 1, dist.group.WORLD), stream().detach()[:, :1]
    with torch.no_grad():
        y, (code, *_) = run_and_get_code(torch.compile(stack, fullgraph=True), x)
        torch.testing.assert_close(y, stack(x))
    lines = [line for line in code.splitlines() if not line.lstrip().startswith("#")]
    names = ("_c10d_functional.all_reduce_.default(", "_c10d_functional.wait_tensor.default(", "extern_kernels.mm(")
    assert_late(*places(lines, *names))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("way", ["launch", "wait"])
def test_handles_do_not_go_into_compiled_code(way):
    torch._dynamo.reset()
    communicator, tensor = ProcessGroupCommunicator(dist.group.WORLD), torch.ones(3)
    handle = communicator.launch(tensor, "sum of mine")
    call = {"launch": lambda: communicator.launch(tensor, "sum of mine"), "wait": lambda: communicator.wait(handle)}[way]
    with pytest.raises(Exception, match="the sum of mine has a handle, which compiled code cannot hold"):
        torch.compile(call, backend="aot_eager", fullgraph=True)()
    communicator.wait(handle)
    torch.testing.assert_close(tensor, torch.full((3,), 2.0))
