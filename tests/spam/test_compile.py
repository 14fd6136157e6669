"""torch.compile around the whole step."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import ladderkern
from ladderkern.testing import floats

SHORT = {"reset_interval": 5, "warmup_steps": 2, "unclipped_steps": 1, "weight_decay": 0.1}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pair(lr, **options):
    params = [[torch.nn.Parameter(floats(shape, seed=1)) for shape in ((16, 32), (7,))] for _ in range(2)]
    return [ladderkern.SPAM(p, lr=lr if isinstance(lr, float) else lr.clone(), **SHORT, **options) for p in params]


def set_gradients(optimizer, n):
    for p in optimizer.param_groups[0]["params"]:
        p.grad = floats(p.shape, seed=100 + n)


def step_both(compiled_step, compiled, eager, n):
    for optimizer in (compiled, eager):
        set_gradients(optimizer, n)
    compiled_step()
    eager.step()


@pytest.mark.parametrize(
    ("lr", "options"),
    [(0.01, {}), (torch.tensor(0.01), {"state_dtype": torch.bfloat16, "density": 0.5})],
    ids=["lr a float, dense", "lr a tensor, masked, bfloat16"],
)
def test_the_compiled_step_equals_the_eager_one(backend, snapshot, assert_bitwise_equal, options, lr):
    compiled, eager = pair(lr, **options)
    step = torch.compile(compiled.step, backend="aot_eager")
    for n in range(7):
        step_both(step, compiled, eager, n)
        assert_bitwise_equal(snapshot(compiled), snapshot(eager))


def test_the_step_is_compiled_by_the_default_compiler(snapshot, assert_bitwise_equal):
    compiled, eager = pair(torch.tensor(0.01))
    step = torch.compile(compiled.step)
    for n in range(6):
        step_both(step, compiled, eager, n)
    assert_bitwise_equal(snapshot(compiled), snapshot(eager))


def test_a_tensor_lr_that_changes_does_not_recompile(snapshot, assert_bitwise_equal):
    compiled, eager = pair(torch.tensor(0.01))
    counter = CompileCounter()
    step = torch.compile(compiled.step, backend=counter)
    frames = []
    for n in range(10):
        for optimizer in (compiled, eager):
            optimizer.param_groups[0]["lr"].mul_(0.9)
        step_both(step, compiled, eager, n)
        frames.append(counter.frame_count)
    assert frames[-1] > 0  # something was compiled
    assert frames[2:] == frames[2:3] * 8  # the first calls build the state
    assert_bitwise_equal(snapshot(compiled), snapshot(eager))


def test_the_step_is_one_graph(backend):
    optimizer, _ = pair(torch.tensor(0.01))
    set_gradients(optimizer, 0)
    optimizer.step()  # the state begins outside the graph
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)()
    assert not torch.equal(optimizer.param_groups[0]["params"][0], before)


def test_the_step_compiles_inside_a_training_step(snapshot, assert_bitwise_equal):
    compiled, eager = pair(torch.tensor(0.01))

    def train(optimizer, x):
        optimizer.zero_grad()
        sum((p * x).square().sum() for p in optimizer.param_groups[0]["params"]).backward()
        optimizer.step()

    compiled_train = torch.compile(train, backend="aot_eager")
    for n in range(4):
        compiled_train(compiled, torch.tensor(1.0 + n))
        train(eager, torch.tensor(1.0 + n))
    assert_bitwise_equal(snapshot(compiled), snapshot(eager))
