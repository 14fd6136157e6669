"""A LadderStack over ranks under torch.compile: the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ladder_branches import own, whole

from ladderkern.ladder import LadderStack
from ladderkern.testing.branches import Branch, assert_same_gradients, gradients, recurrence, stream

DELAY = [0, 1, 1, 2]


def compare(run, modules):
    """What ``run`` gives is what one process computes, with gradients and without."""
    dense, x, x_dense = whole(len(DELAY)), stream(), stream()
    expected = recurrence(dense, DELAY, x_dense)
    y = run(x)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x_dense, dense))
    with torch.no_grad():
        torch.testing.assert_close(run(x), expected.detach())


@pytest.mark.ranks(2)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("what", ["stack", "branches"])
def test_one_graph_gives_the_same(what, backend):
    torch._dynamo.reset()
    modules = own(len(DELAY))
    stack = LadderStack(modules, DELAY, dist.group.WORLD)
    if what == "branches":
        stack.compile_branches(backend=backend, fullgraph=True)
    else:
        stack.compile(backend=backend, fullgraph=True)
    compare(stack, modules)


class Breaking(Branch):
    def forward(self, normed, scale=1.0):
        torch._dynamo.graph_break()
        return super().forward(normed, scale)


@pytest.mark.ranks(2)
@pytest.mark.parametrize("what", ["stack", "branches"])
def test_graph_breaks_inside_branches_do_no_harm(what):
    torch._dynamo.reset()
    modules = own(len(DELAY), kind=Breaking)
    stack = LadderStack(modules, DELAY, dist.group.WORLD)
    if what == "branches":
        stack.compile_branches(backend="aot_eager")
    else:
        stack.compile(backend="aot_eager")
    compare(stack, modules)
