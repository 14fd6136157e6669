"""A LadderStack over ranks computes what one process computes, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ladder_branches import late, own, recorded, whole
from torch import nn
from torch.utils.checkpoint import checkpoint

from ladderkern.ladder import LadderStack
from ladderkern.testing import assert_within_budget, floats
from ladderkern.testing.branches import DELAYS, HIDDEN, Branch, assert_same_gradients, gradients, loss_of, recurrence, stream

EACH_DELAY = pytest.mark.parametrize("case", DELAYS)


@pytest.mark.ranks(2, 4)
@EACH_DELAY
@pytest.mark.parametrize("communicator", ["group", "late"])
def test_outputs_and_all_gradients_are_those_of_one_process(case, communicator):
    delay, group = DELAYS[case], dist.group.WORLD if communicator == "group" else late()
    modules, dense, x, x_dense = own(), whole(), stream(), stream()
    y = LadderStack(modules, delay, group)(x)
    expected = recurrence(dense, delay, x_dense)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x_dense, dense))


@pytest.mark.ranks(2)
@EACH_DELAY
def test_inference_gives_the_same(case):
    modules, x = own(), stream()
    stack = LadderStack(modules, DELAYS[case], late())
    expected = stack(x)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = stack(x)
        assert not y.requires_grad
        torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.ranks(2)
def test_replicated_gradients_are_the_same_bits_on_every_rank():
    modules, x = own(), stream()
    mine = gradients(LadderStack(modules, 1, dist.group.WORLD)(x), x, modules)
    for name in ("x", *(f"{i}.norm_weight" for i in range(len(modules)))):
        all_of_them = [torch.empty_like(mine[name]) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, mine[name])
        torch.testing.assert_close(all_of_them[1], all_of_them[0], rtol=0, atol=0)


class Checkpointed(Branch):
    def forward(self, normed, scale=1.0):
        return checkpoint(super().forward, normed, scale, use_reentrant=False)


@pytest.mark.ranks(2)
@EACH_DELAY
def test_a_checkpoint_around_each_branch_repeats_no_sum(case):
    delay, communicator = DELAYS[case], recorded()
    modules, dense, x, x_dense = own(kind=Checkpointed), whole(), stream(), stream()
    y = LadderStack(modules, delay, communicator)(x)
    expected = recurrence(dense, delay, x_dense)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x_dense, dense))
    for kind in ("launch", "wait"):
        names = [event.name for event in communicator.events if event.kind == kind]
        assert sorted(names) == sorted({(phase, i) for phase in ("forward", "backward") for i in range(len(modules))})


@pytest.mark.ranks(2)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_stack_repeats_all_of_it(use_reentrant):
    modules, dense, x, x_dense = own(), whole(), stream(), stream()
    y = checkpoint(LadderStack(modules, 1, late()), x, use_reentrant=use_reentrant)
    expected = recurrence(dense, 1, x_dense)
    loss_of(y).backward()  # a reentrant checkpoint refuses autograd.grad
    gradient = gradients(expected, x_dense, dense)
    assert_same_gradients({"x": x.grad, "0.norm_weight": modules[0].norm_weight.grad}, gradient)


@pytest.mark.ranks(2)
def test_a_graph_may_be_gone_through_twice():
    modules, x = own(), stream()
    loss = loss_of(LadderStack(modules, [0, 1, 1, 2, 0, 1], late())(x))
    first = torch.autograd.grad(loss, [x, modules[2].parts[0].up], retain_graph=True)
    again = torch.autograd.grad(loss, [x, modules[2].parts[0].up])
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.ranks(2)
def test_the_gradient_of_one_parameter_alone_can_be_asked_for():
    for i in (0, 2, 5):
        modules, dense = own(), whole()
        wanted = modules[i].parts[0].down
        (gradient,) = torch.autograd.grad(loss_of(LadderStack(modules, 1, late())(stream())), wanted)
        expected = recurrence(dense, 1, stream())
        (reference,) = torch.autograd.grad(loss_of(expected), dense[i].parts[dist.get_rank()].down)
        torch.testing.assert_close(gradient, reference)


@pytest.mark.ranks(2)
def test_no_gradient_is_summed_where_none_is_needed():
    communicator, modules = recorded(), own()
    for module in modules[:3]:
        module.norm_weight.requires_grad_(False)
    loss_of(LadderStack(modules, [0, 1, 1, 1, 1, 1], communicator)(stream().detach())).backward()
    launched = {e.name.branch for e in communicator.events if e.kind == "launch" and e.name.phase == "backward"}
    # Branches 0 and 1 read the input itself, which no parameter reaches; branch 2 reads the output of branch 0.
    assert launched == {2, 3, 4, 5}
    assert all(p.grad is not None for module in modules for p in module.parts.parameters())


@pytest.mark.ranks(2)
@pytest.mark.parametrize("case", ["standard", "ladder", "mixed"])
def test_second_derivatives_are_refused(case):
    x = stream()
    loss = loss_of(LadderStack(own(), DELAYS[case], dist.group.WORLD)(x))
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|differentiable once"):
        gradient.sum().backward()


@pytest.mark.ranks(2)
@pytest.mark.parametrize("delay", [0, 1])
def test_branches_in_bfloat16_by_autocast_stay_within_budget(delay):
    results = []
    for modules, group, dtype, enabled in (
        (own(dtype=torch.float32), late(), torch.float32, True),
        (whole(dtype=torch.float32), None, torch.float32, True),
        (whole(dtype=torch.float64), None, torch.float64, False),
    ):
        x = stream(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = LadderStack(modules, delay, group)(x)
        assert y.dtype == dtype
        results.append((y.detach(), torch.autograd.grad(loss_of(y), x)[0]))
    for name, actual, eager, oracle in zip(("output", "gradient"), *results, strict=True):
        assert_within_budget(actual, eager, oracle, name)


class Memory(Branch):
    """A branch that sees all positions so far, in the manner of attention over a cache."""

    def forward(self, normed, cache):
        seen = torch.cat([cache[self], normed], dim=1) if self in cache else normed
        cache[self] = seen
        return super().forward(seen.cumsum(1)[:, -normed.shape[1] :])


@pytest.mark.ranks(2)
@EACH_DELAY
def test_caches_are_passed_through(case):
    stack = LadderStack(own(kind=Memory), DELAYS[case], late())
    x = floats((2, 7, HIDDEN), torch.float64, seed=9)
    with torch.no_grad():
        expected = stack(x, {})
        cache = {}
        pieces = [stack(x[:, part], cache) for part in (slice(0, 4), slice(4, 5), slice(5, 7))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


@pytest.mark.ranks(2)
def test_other_arguments_reach_every_branch():
    modules, x = own(), stream()
    y = LadderStack(modules, 1, dist.group.WORLD)(x, scale=0.5)
    torch.testing.assert_close(y, recurrence(whole(), 1, x, scale=0.5))


@pytest.mark.ranks(2)
@EACH_DELAY
def test_without_a_group_nothing_is_communicated(case):
    before = dist.all_reduce
    dist.all_reduce = None  # a call would raise, on this rank alone
    try:
        modules, x = own(), stream()
        y = LadderStack(modules, DELAYS[case])(x)
        expected = recurrence(modules, DELAYS[case], x)
        assert_same_gradients(gradients(y, x, modules), gradients(expected, x, modules))
        torch.testing.assert_close(y, expected)
    finally:
        dist.all_reduce = before


class Passing(nn.Module):
    """A branch that returns what it got: its output shares memory with the stream's norm."""

    def __init__(self):
        super().__init__()
        self.norm_weight, self.eps = nn.Parameter(torch.ones(HIDDEN, dtype=torch.float64)), 1e-6

    def forward(self, normed):
        return normed


@pytest.mark.ranks(2)
def test_what_a_branch_returns_is_not_summed_in_place():
    stack, x = LadderStack([Passing(), Passing(), Passing()], 1, late()), stream()
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    y, seen = None, []
    stack.branches[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    y = stack(x)
    torch.testing.assert_close(seen[0], normed)
    (gradient,) = torch.autograd.grad(loss_of(y), x)
    branches = [lambda n: 2 * n] * 3
    for branch in stack.branches:
        branch.forward = branches[0]
    (expected,) = torch.autograd.grad(loss_of(LadderStack(stack.branches, 1)(x)), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.ranks(4)
def test_the_mesh_dimension_of_a_group_may_be_given():
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    tp = mesh["tp"]
    modules = [Branch(i, [tp.get_local_rank()]) for i in range(3)]
    x = floats((2, HIDDEN), torch.float64, seed=20 + mesh["dp"].get_local_rank())
    torch.testing.assert_close(LadderStack(modules, 1, tp)(x), recurrence([Branch(i, range(2)) for i in range(3)], 1, x))
    with pytest.raises(ValueError, match="one dimension"):
        LadderStack(modules, 1, mesh)
    if dist.get_rank() > 1:
        other = dist.new_group([0, 1])
        with pytest.raises(ValueError, match="hold this rank"):
            LadderStack(modules, 1, other)
    else:
        dist.new_group([0, 1])
