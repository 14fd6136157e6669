"""What PyTorch's collectives do that a ladder must not fall for."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ladder_branches import late, own, whole
from torch.distributed import _functional_collectives as functional
from torch.distributed.tensor import DTensor, Partial, Replicate

import ladderkern
from ladderkern.ladder import LadderStack
from ladderkern.runtime.library import NATIVE
from ladderkern.testing.branches import DELAYS, Branch, assert_same_gradients, gradients, recurrence, stream

EACH_DELAY = pytest.mark.parametrize("case", DELAYS)
BACKENDS = pytest.mark.parametrize("backend", ["reference", *(["native"] if NATIVE.loaded else [])])
OPS = torch.ops.ladderkern


class SummedByDTensor(Branch):
    """A branch that sums its own parts, and returns before the sum is there, as RowwiseParallel does."""

    mesh = None

    def forward(self, normed):
        place = {"device_mesh": self.mesh, "run_check": False}
        normed = DTensor.from_local(normed, placements=[Replicate()], **place).to_local(grad_placements=[Partial()])
        part = DTensor.from_local(super().forward(normed), placements=[Partial()], **place)
        summed = part.redistribute(placements=[Replicate()], async_op=True).to_local()
        assert isinstance(summed, functional.AsyncCollectiveTensor)
        assert summed.data_ptr() == 0  # what a kernel would get
        return summed


@pytest.mark.ranks(2)
@BACKENDS
@EACH_DELAY
def test_a_branch_may_return_a_tensor_that_still_awaits_its_sum(case, backend):
    SummedByDTensor.mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    modules, dense, x, x_dense = own(kind=SummedByDTensor), whole(), stream(), stream()
    with ladderkern.backend(backend):
        y = LadderStack(modules, DELAYS[case])(x)
        expected = recurrence(dense, DELAYS[case], x_dense)
        torch.testing.assert_close(y, expected)
        assert_same_gradients(gradients(y, x, modules), gradients(expected, x_dense, dense))


@pytest.mark.ranks(2)
@EACH_DELAY
def test_the_stream_and_the_gradient_may_still_await_a_sum(case):
    size, name = dist.get_world_size(), dist.group.WORLD.group_name
    modules, x = own(), stream()
    stack = LadderStack(modules, DELAYS[case], late())
    expected = stack(x)
    (gradient,) = torch.autograd.grad(expected, x, expected.detach())
    with torch.no_grad():
        awaited = functional.all_reduce(x / size, "sum", name)
        assert isinstance(awaited, functional.AsyncCollectiveTensor)
        torch.testing.assert_close(stack(awaited), expected.detach())
        incoming = functional.all_reduce(expected.detach() / size, "sum", name)
    torch.testing.assert_close(torch.autograd.grad(stack(x), x, incoming)[0], gradient)


def row_parallel(x, name):
    return OPS.all_reduce_wait(OPS.all_reduce_start(x, name))


@pytest.mark.ranks(2)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_a_sum_is_not_summed_again(compiled):
    rank, name = dist.get_rank(), dist.group.WORLD.group_name
    call = torch.compile(row_parallel, backend="aot_eager", fullgraph=True) if compiled else row_parallel
    x = torch.full((3,), rank + 1.0, requires_grad=True)
    y = call(x, name)
    torch.testing.assert_close(y, torch.full((3,), 3.0))
    (gradient,) = torch.autograd.grad((y * (rank + 1)).sum(), x)
    torch.testing.assert_close(gradient, torch.full((3,), rank + 1.0))


@pytest.mark.ranks(2)
def test_a_sum_started_before_a_graph_break_may_be_waited_for_behind_it():
    name = dist.group.WORLD.group_name

    def function(x):
        pending = OPS.all_reduce_start(x * 2, name)
        y = x.sin()
        torch._dynamo.graph_break()
        return OPS.all_reduce_wait(pending) * y

    x = torch.full((4,), dist.get_rank() + 1.0, requires_grad=True)
    expected = 6.0 * x.sin()
    y = torch.compile(function, backend="aot_eager")(x)
    torch.testing.assert_close(y, expected)
    gradient = 2 * x.sin() + 6 * x.cos()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], gradient)


@pytest.mark.ranks(2, 4)
def test_the_ops_pass_opcheck_and_leave_their_input_alone():
    x = torch.arange(12.0).view(3, 4).t().requires_grad_()  # not contiguous
    before, size = x.detach().clone(), dist.get_world_size()
    # opcheck copies and compares what it is given without a wait: among several ranks that is still being filled.
    alone = [dist.new_group([rank]) for rank in range(size)][dist.get_rank()].group_name
    torch.library.opcheck(OPS.all_reduce_start.default, (x, alone))
    pending = OPS.all_reduce_start(x, alone).detach().requires_grad_()
    torch.library.opcheck(OPS.all_reduce_wait.default, (pending,))
    torch.testing.assert_close(row_parallel(x, dist.group.WORLD.group_name), before * size)
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)
