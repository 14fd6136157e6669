"""LadderStack in one process: the equation for any delays, the form of its norms, compilers, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ladderkern.ladder import LadderStack
from ladderkern.ladder import stack as module
from ladderkern.ladder.schedule import schedule
from ladderkern.testing import assert_within_budget, floats
from ladderkern.testing.branches import (
    DELAYS,
    HIDDEN,
    Branch,
    assert_same_gradients,
    branches,
    gradients,
    loss_of,
    recurrence,
    stream,
)

EACH_DELAY = pytest.mark.parametrize("case", DELAYS)


@EACH_DELAY
def test_the_stack_is_the_equation(backend, case):
    modules, x = branches([0, 1]), stream()
    y, expected = LadderStack(modules, DELAYS[case])(x), recurrence(modules, DELAYS[case], x)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x, modules))


@pytest.mark.parametrize("seed", range(20))
def test_any_delays_are_served(seed):
    generator = torch.Generator().manual_seed(seed)
    delay = torch.randint(0, 5, (8,), generator=generator).tolist()
    modules, x = branches([0], 8), stream()
    y, expected = LadderStack(modules, delay)(x), recurrence(modules, delay, x)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x, modules))


def test_a_standard_stack_is_the_plain_loop_bit_by_bit():
    modules, x = branches([0], dtype=torch.float32), stream(torch.float32)
    plain = x
    for branch in modules:
        plain = plain + branch(nn.functional.rms_norm(plain, (HIDDEN,), branch.norm_weight, branch.eps))
    torch.testing.assert_close(LadderStack(modules, 0)(x), plain)


def test_no_branches_leave_the_stream_as_it_is():
    x = stream()
    assert LadderStack([])(x) is x


@pytest.mark.parametrize(
    ("delay", "expected"),
    [
        (0, ["norm 1", "add 1 norm 1", "add 1 norm 1", "add 1 norm 1"]),
        (1, ["add 0 norm 2", "add 1 norm 1", "add 1 norm 1"]),
        ([0, 0, 1, 1], ["norm 1", "add 1 norm 2", "add 1 norm 1"]),  # the boundary: two branches read one stream
        ([1, 1, 0, 0], ["add 0 norm 2", "add 2 norm 1", "add 1 norm 1"]),  # and back: two outputs are waited for
        ([3, 3, 3, 3], ["add 0 norm 2", "norm 1", "norm 1"]),
    ],
)
def test_additions_and_norms_are_one_pass_where_one_can_be(monkeypatch, delay, expected):
    calls = []

    def add_rms_norm(x, update, weight, eps, *, update2=None, weight2=None):
        calls.append(f"add {(update is not None) + (update2 is not None)} norm {1 + (weight2 is not None)}")
        return inner(x, update, weight, eps, update2=update2, weight2=weight2)

    def rms_norm(x, weight, eps):
        calls.append("norm 1")
        return plain(x, weight, eps)

    inner, plain = module.add_rms_norm, module.rms_norm
    monkeypatch.setattr(module, "add_rms_norm", add_rms_norm)
    monkeypatch.setattr(module, "rms_norm", rms_norm)
    LadderStack(branches([0], 4), delay)(stream())
    assert calls == expected


@pytest.mark.parametrize("difference", ["eps", "dtype"])
def test_branches_of_one_stream_may_have_different_norms(difference):
    modules, x = branches([0], 3, dtype=torch.float32), stream(torch.float32)
    if difference == "eps":
        modules[1].eps = 0.5
    else:
        modules[1].norm_weight = nn.Parameter(modules[1].norm_weight.detach().bfloat16())
    expected = recurrence(modules, 1, x)
    torch.testing.assert_close(LadderStack(modules, 1)(x), expected)


def test_the_schedule_forms_a_stream_once_and_only_if_it_is_read():
    for delay in ([0, 3, 0, 1, 2, 1, 0], [2] * 6, [0, 0, 2, 0, 4, 1]):
        plan = schedule(delay)
        joins = [join for group in plan.joins for join in group]
        assert sorted(i for join in joins for i in join.readers) == list(range(len(delay)))
        assert [i for join in joins for i in join.updates] + list(plan.drain) == list(range(len(delay)))


def test_parameters_are_those_of_the_branches():
    modules = branches([0], 2)
    stack = LadderStack(modules)
    assert set(stack.state_dict()) == {f"branches.{i}.{name}" for i in range(2) for name in modules[0].state_dict()}
    twin = copy.deepcopy(stack)
    torch.testing.assert_close(twin(stream()), stack(stream()))


@EACH_DELAY
def test_the_stack_compiles_into_one_graph(case):
    modules, x = branches([0]), stream()
    stack = LadderStack(modules, DELAYS[case])
    y = torch.compile(stack, backend="aot_eager", fullgraph=True)(x)
    expected = stack(x)
    torch.testing.assert_close(y, expected)
    assert_same_gradients(gradients(y, x, modules), gradients(expected, x, modules))


def test_compiled_branches_are_compiled_and_the_loop_is_not():
    modules, x = branches([0]), stream()
    stack = LadderStack(modules)
    expected = stack(x)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    stack.compile_branches(backend=backend, fullgraph=True)
    torch.testing.assert_close(stack(x), expected)
    assert graphs
    assert all("rms_norm" not in graph.code for graph in graphs)
    assert set(stack.state_dict()) == set(LadderStack(branches([0])).state_dict())


def test_outputs_in_a_lower_precision_are_added_in_that_of_the_stream():
    modules, x = branches([0], dtype=torch.float32), stream(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert modules[0](x).dtype == torch.bfloat16
        y = LadderStack(modules, 1)(x)
        eager = recurrence(modules, 1, x)
    assert y.dtype == torch.float32
    assert_within_budget(y, eager, recurrence(branches([0]), 1, stream()))
    loss_of(y).backward()
    assert all(p.grad.dtype == torch.float32 for m in modules for p in m.parameters())


@pytest.mark.parametrize(
    ("delay", "error", "message"),
    [
        (-1, ValueError, "delay must be at least 0, got -1"),
        ([0, 1], ValueError, "one for each of the 3 branches, got 2"),
        (1.0, TypeError, "delay must be an int"),
        (torch.tensor([0, 1, 1]), TypeError, "delay must be an int"),
        (True, TypeError, "delay must be an int"),
        ([0, 1, 0.5], TypeError, "delay must be an int"),
    ],
)
def test_other_delays_are_refused(delay, error, message):
    with pytest.raises(error, match=message):
        LadderStack(branches([0], 3), delay)


@pytest.mark.parametrize("result", [floats((2, 3, 5)), (floats((2, 3, HIDDEN)),), None])
def test_branches_must_return_the_shape_of_the_stream(result):
    modules = branches([0], 3)
    modules[1].forward = lambda normed: result
    with pytest.raises(ValueError, match="branch 1 must return a tensor of the shape"):
        LadderStack(modules)(stream())


def test_repr_shows_the_wiring():
    assert "delay=(1, 0), group=None" in repr(LadderStack([Branch(0, [0]), Branch(1, [0])], [1, 0]))
