"""Dtypes, layouts, alignment and sizes: the same numbers wherever the tensors lie, and nothing written beside them."""

from itertools import product

import pytest
import torch

import ladderkern
from ladderkern.testing import EMPTY_SHAPES, LAYOUTS, assert_within_budget, floats, guarded, laid_out

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MOMENTS = [torch.float32, torch.bfloat16, torch.float64]
SHAPE = (4, 3, 5, 16)
OPTIONS = {"reset_interval": 6, "warmup_steps": 2, "unclipped_steps": 2, "weight_decay": 0.1, "lr": 0.01}


def optimizer_on(p, m, v, step, **options):
    """An optimizer of one parameter in the middle of its run, with these very tensors as its state."""
    parameter = torch.nn.Parameter(p)
    optimizer = ladderkern.SPAM([parameter], **{**OPTIONS, **options})
    optimizer.state[parameter] = {"step": torch.tensor(float(step)), "exp_avg": m, "exp_avg_sq": v}
    return optimizer, parameter


def step_with(optimizer, parameter, grad):
    parameter.grad_dtype = grad.dtype
    parameter.grad = grad
    optimizer.step()


# The call after `before` steps: first of all, clipped, a reset, unclipped after it.
@pytest.mark.parametrize("before", [0, 4, 5, 6], ids=["first", "clipped", "reset", "unclipped"])
@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_all_dtypes_of_parameter_and_gradient_are_stepped(backend, simulation, moments, before):
    for param_dtype, grad_dtype in product(FLOATS, FLOATS):
        p = floats((37, 16), param_dtype, seed=1)
        g = floats((37, 16), grad_dtype, seed=2)
        g[::5] *= 1000  # past the cut of sqrt(5000 v)
        m, v = floats((37, 16), moments, seed=3), floats((37, 16), moments, seed=4).abs()
        if before == 0:
            m, v = torch.zeros_like(m), torch.zeros_like(v)
        compute = torch.float64 if param_dtype == torch.float64 else torch.float32
        eager, oracle = (simulation(p, dtype, **OPTIONS) for dtype in (compute, torch.float64))
        for s in (eager, oracle):
            s.m, s.v, s.n = m.to(s.p.dtype), v.to(s.p.dtype), before
            s.step(g)
        optimizer, parameter = optimizer_on(p.clone(), m.clone(), v.clone(), before, state_dtype=moments)
        step_with(optimizer, parameter, g)
        state = optimizer.state[parameter]
        what = f"param {param_dtype}, grad {grad_dtype}: "
        assert_within_budget(parameter.detach(), eager.p.to(param_dtype), oracle.p, what + "p")
        assert_within_budget(state["exp_avg"], eager.m.to(moments), oracle.m, what + "exp_avg")
        assert_within_budget(state["exp_avg_sq"], eager.v.to(moments), oracle.v, what + "exp_avg_sq")


def contiguous_result(tensors, **options):
    copies = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    optimizer, parameter = optimizer_on(copies[0], *copies[2:], 4, **options)
    step_with(optimizer, parameter, copies[1])
    return [copies[0], copies[2], copies[3]]


@pytest.mark.parametrize("density", [1.0, 0.25])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("param", [torch.float32, torch.bfloat16], ids=str)
def test_every_pair_of_layouts_gives_the_contiguous_result_and_stays_inside(
    backend, assert_bitwise_equal, param, moments, density
):
    compact = (*SHAPE[:-1], 4) if density == 0.25 else SHAPE
    for param_layout, grad_layout in product(LAYOUTS, LAYOUTS):
        if param_layout == "expanded":
            continue  # cannot be written in place
        values = [
            floats(SHAPE, param, layout=param_layout, seed=1),
            floats(SHAPE, param, layout=grad_layout, seed=2),
            floats(compact, moments, layout=param_layout, seed=3),
            laid_out(floats(compact, moments, seed=4).abs(), grad_layout if grad_layout != "expanded" else "contiguous"),
        ]
        boxes = [guarded(t) for t in values]
        p, g, m, v = (box.tensor for box in boxes)
        optimizer, parameter = optimizer_on(p, m, v, 4, density=density, state_dtype=moments)
        step_with(optimizer, parameter, g)
        assert_bitwise_equal([p, m, v], contiguous_result(values, density=density, state_dtype=moments))
        assert_bitwise_equal([g], [values[1]])
        for name, box in zip(("p", "grad", "exp_avg", "exp_avg_sq"), boxes, strict=True):
            box.assert_untouched(f"{name}, {param_layout} parameter, {grad_layout} gradient")


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("param", FLOATS, ids=str)
def test_every_start_offset_gives_the_aligned_result_and_stays_inside(backend, assert_bitwise_equal, param, moments):
    n = 71  # two vectors of the widest unit and a tail
    for offset in range(32):
        values = [
            floats((n,), param, offset=offset, seed=1),
            floats((n,), param, offset=(3 * offset) % 32, seed=2),
            floats((n,), moments, offset=(5 * offset) % 32, seed=3),
            laid_out(floats((n,), moments, seed=4).abs(), "contiguous", (7 * offset) % 32),
        ]
        boxes = [guarded(t) for t in values]
        p, g, m, v = (box.tensor for box in boxes)
        optimizer, parameter = optimizer_on(p, m, v, 4)
        step_with(optimizer, parameter, g)
        assert_bitwise_equal([p, m, v], contiguous_result(values))
        for name, box in zip(("p", "grad", "exp_avg", "exp_avg_sq"), boxes, strict=True):
            box.assert_untouched(f"{name} at offset {offset}")


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 255, 1000, 7186])
def test_an_element_does_not_depend_on_how_many_follow(backend, assert_bitwise_equal, n):
    whole = [floats((8192,), seed=s) for s in range(3)] + [floats((8192,), seed=3).abs()]
    expected = contiguous_result(whole)
    assert_bitwise_equal(contiguous_result([t[:n] for t in whole]), [t[:n] for t in expected])


def test_zero_size_tensors_anywhere_in_a_group_change_nothing(backend, assert_bitwise_equal):
    def stepped(shapes):
        params = [torch.nn.Parameter(floats(shape, seed=len(shape))) for shape in shapes]
        optimizer = ladderkern.SPAM(params, density=0.5)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert all(optimizer.state[p]["step"] == 1 for p in params)
        return [p.detach() for p in params if p.numel()]

    full = [(5,), (3, 16), (4,)]
    alone = [stepped([shape])[0] for shape in full if shape != (3, 16)]
    for where in range(len(full) + 1):
        mixed = [*full[:where], *EMPTY_SHAPES, *EMPTY_SHAPES, *full[where:]]
        first, _, last = stepped(mixed)
        assert_bitwise_equal([first, last], alone)


def test_a_group_of_empty_tensors_alone_is_stepped(backend):
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in EMPTY_SHAPES]
    optimizer = ladderkern.SPAM(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(optimizer.state[p]["step"] == 1 for p in params)


def test_a_zero_dimensional_parameter_is_stepped(backend):
    scalar, vector = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor([2.0]))
    for lr in (0.1, torch.tensor(0.1), torch.tensor([0.1])):
        optimizer = ladderkern.SPAM([scalar, vector], lr=lr, density=0.5)
        scalar.grad, vector.grad = torch.tensor(3.0), torch.tensor([3.0])
        optimizer.step()
        assert scalar.item() == vector.item() < 2.0


def test_two_hundred_small_tensors_equal_one_by_one(backend, assert_bitwise_equal, train):
    shapes = [((n * 7) % 23 + 1,) if n % 3 else (n % 5, 16) for n in range(200)]

    def run(split):
        params = [torch.nn.Parameter(floats(shape, seed=n)) for n, shape in enumerate(shapes)]
        gradients = [[floats(shape, seed=1000 * t + n) for n, shape in enumerate(shapes)] for t in range(2)]
        groups = [{"params": [p]} for p in params] if split else params  # the index of each parameter is the same
        train(ladderkern.SPAM(groups, state_dtype=torch.bfloat16), gradients)
        return [p.detach() for p in params]

    assert_bitwise_equal(run(split=False), run(split=True))
