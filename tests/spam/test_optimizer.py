"""SPAM as a torch.optim.Optimizer: groups, hooks, closures, schedulers, tensors as options."""

import copy

import pytest
import torch

import ladderkern
from ladderkern.testing import LAYOUTS, assert_within_budget, floats

# With eps = 0 it makes no difference that SPAM adds eps before the bias correction and AdamW after it.
AS_ADAMW = {"eps": 0.0, "threshold": 0.0, "reset_interval": 0}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_resets_and_clipping_it_is_adamw(backend, spiky_gradients, weight_decay, maximize):
    options = {"lr": 0.01, "eps": 0.0, "weight_decay": weight_decay, "maximize": maximize}
    p = torch.nn.Parameter(floats((40, 40), seed=1))
    eager, oracle = (torch.nn.Parameter(p.detach().to(dtype, copy=True)) for dtype in (torch.float32, torch.float64))
    adamw = [torch.optim.AdamW([q], foreach=False, **options) for q in (eager, oracle)]
    spam = ladderkern.SPAM([p], **{**options, **AS_ADAMW})
    for g in spiky_gradients(30, p.shape):
        for q, optimizer in zip((eager, oracle, p), (*adamw, spam), strict=True):
            q.grad = g.to(q.dtype)
            optimizer.step()
    assert_within_budget(p.detach(), eager.detach(), oracle.detach())


def test_state_holds_step_and_two_moments_and_nothing_else(backend):
    p = torch.nn.Parameter(floats((4, 16), torch.bfloat16))
    optimizer = ladderkern.SPAM([p], density=0.5)
    assert optimizer.state_dict()["state"] == {}
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert list(optimizer.state) == [p]
    state = optimizer.state[p]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert (state["step"].dtype, state["step"].shape, state["step"].device) == (torch.float32, (), p.device)
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


@pytest.mark.parametrize(
    ("param", "asked", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.float64, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_moments_begin_in_state_dtype(backend, param, asked, expected):
    p = torch.nn.Parameter(floats((3,), param))
    optimizer = ladderkern.SPAM([p], state_dtype=asked)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == optimizer.state[p]["exp_avg_sq"].dtype == expected


def test_moments_that_a_hook_put_there_are_used_and_keep_their_dtype(backend):
    p = torch.nn.Parameter(torch.zeros(8))
    optimizer = ladderkern.SPAM([p])  # would be float32

    def fill(optimizer, args, kwargs):
        if not optimizer.state[p]:
            optimizer.state[p]["exp_avg"] = torch.ones(8, dtype=torch.bfloat16)
            optimizer.state[p]["exp_avg_sq"] = torch.ones(8, dtype=torch.bfloat16)

    optimizer.register_step_pre_hook(fill)
    p.grad = torch.zeros(8)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == optimizer.state[p]["exp_avg_sq"].dtype == torch.bfloat16
    assert (optimizer.state[p]["exp_avg"] > 0.5).all()  # 0.9 of what was there
    assert optimizer.state[p]["step"] == 1


def test_parameters_without_gradient_are_passed_over(backend, train, snapshot, assert_bitwise_equal):
    params = [torch.nn.Parameter(floats((4,), seed=s)) for s in range(3)]
    optimizer = ladderkern.SPAM(params)
    before = params[1].detach().clone()
    train(optimizer, [[torch.ones(4), None, torch.ones(4)]] * 3)
    assert params[1] not in optimizer.state
    assert_bitwise_equal([params[1]], [before])
    assert [optimizer.state[p]["step"].item() for p in (params[0], params[2])] == [3, 3]


def test_a_gradient_that_comes_late_starts_its_own_first_cycle(backend, train, assert_bitwise_equal, spiky_gradients):
    options = {"reset_interval": 5, "warmup_steps": 2, "unclipped_steps": 1}
    late, fresh = (torch.nn.Parameter(floats((32,), seed=1)) for _ in range(2))
    gradients = spiky_gradients(12, (32,))
    train(ladderkern.SPAM([late], **options), [[None]] * 7 + [[g] for g in gradients])
    train(ladderkern.SPAM([fresh], **options), [[g] for g in gradients])
    assert_bitwise_equal([late], [fresh])


def test_a_step_without_any_gradient_does_nothing(backend):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ladderkern.SPAM([p])
    assert optimizer.step() is None
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_not_modified(backend, assert_bitwise_equal, layout, maximize):
    p = torch.nn.Parameter(floats((4, 3, 5, 16), seed=1))
    optimizer = ladderkern.SPAM([p], density=0.25, unclipped_steps=1, maximize=maximize)
    for n in range(4):
        p.grad = floats((4, 3, 5, 16), layout=layout, seed=n)
        p.grad[0, 0, 0, 0] = 1e6  # cut from the second step on
        gradient, before = p.grad, p.grad.clone()
        optimizer.step()
        assert p.grad is gradient
        assert_bitwise_equal([p.grad], [before])


@pytest.mark.parametrize("option", ["lr", "betas", "weight_decay", "density", "reset_interval", "threshold", "seed"])
def test_options_hold_for_their_group_alone(backend, train, spiky_gradients, assert_bitwise_equal, option):
    base = {"lr": 0.01, "reset_interval": 6, "warmup_steps": 2, "unclipped_steps": 2, "density": 0.5}
    other = {
        "lr": 0.1,
        "betas": (0.5, 0.9),
        "weight_decay": 0.3,
        "density": 0.25,
        "reset_interval": 4,
        "threshold": 10.0,
        "seed": 9,
    }[option]
    gradients = spiky_gradients(14, (16, 32))

    def run(first, second):
        params = [torch.nn.Parameter(floats((16, 32), seed=s)) for s in range(2)]
        groups = [{"params": [params[0]], **first}, {"params": [params[1]], **second}]
        train(ladderkern.SPAM(groups, **base), [[g, g] for g in gradients])
        return params

    mixed, plain, changed = run({}, {option: other}), run({}, {}), run({option: other}, {option: other})
    assert_bitwise_equal(mixed, [plain[0], changed[1]])
    assert not torch.equal(plain[1], changed[1])


def test_groups_added_later_are_stepped(backend, train):
    first, second = (torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(2))
    optimizer = ladderkern.SPAM([first])
    train(optimizer, [[torch.ones(16, 16)]] * 3)
    optimizer.add_param_group({"params": [second], "density": 0.25})
    train(optimizer, [[torch.ones(16, 16)] * 2] * 2)
    assert [optimizer.state[p]["step"].item() for p in (first, second)] == [5, 2]
    assert optimizer.state[second]["exp_avg"].shape == (16, 4)


def test_named_parameters_are_taken(backend):
    model = torch.nn.Linear(3, 2)
    optimizer = ladderkern.SPAM(model.named_parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("lr", [0.0, 0.01])
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_lr_as_a_tensor_equals_lr_as_a_float(backend, train, spiky_gradients, assert_bitwise_equal, lr, shape):
    params = [torch.nn.Parameter(floats((33,), seed=1)) for _ in range(2)]
    for p, value in zip(params, (lr, torch.full(shape, lr, dtype=torch.float64)), strict=True):
        train(ladderkern.SPAM([p], lr=value, weight_decay=0.1), [[g] for g in spiky_gradients(5, (33,))])
    assert_bitwise_equal(params[:1], params[1:])
    assert torch.equal(params[0], floats((33,), seed=1)) == (lr == 0.0)


def test_betas_may_be_tensors_on_the_cpu(backend, train, spiky_gradients, assert_bitwise_equal):
    params = [torch.nn.Parameter(floats((33,), seed=1)) for _ in range(2)]
    tensors = tuple(torch.tensor(beta, dtype=torch.float64) for beta in (0.8, 0.99))
    for p, betas in zip(params, ((0.8, 0.99), tensors), strict=True):
        train(ladderkern.SPAM([p], betas=betas), [[g] for g in spiky_gradients(5, (33,))])
    assert_bitwise_equal(params[:1], params[1:])


@pytest.mark.parametrize("make", [float, lambda lr: torch.tensor(lr, dtype=torch.float64)], ids=["float", "tensor"])
def test_schedulers_set_the_learning_rate(backend, train, spiky_gradients, assert_bitwise_equal, make):
    scheduled, by_hand = (torch.nn.Parameter(floats((33,), seed=1)) for _ in range(2))
    optimizers = [ladderkern.SPAM([scheduled], lr=make(0.5)), ladderkern.SPAM([by_hand], lr=0.5)]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizers[0], gamma=0.5)  # exact in binary
    for n, g in enumerate(spiky_gradients(6, (33,))):
        optimizers[1].param_groups[0]["lr"] = 0.5**n * 0.5
        for optimizer in optimizers:
            train(optimizer, [[g]])
        scheduler.step()
    assert_bitwise_equal([scheduled], [by_hand])


def test_the_closure_runs_with_gradients_on_and_its_value_is_returned(backend):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ladderkern.SPAM([p])

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert torch.equal(p.grad, torch.full((3,), 2.0))
    assert (p < 1).all()


def test_step_hooks_run_around_the_step(backend):
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = ladderkern.SPAM([p])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(p.item()))
    optimizer.register_step_post_hook(lambda *_: seen.append(p.item()))
    p.grad = torch.ones(1)
    optimizer.step()
    assert seen == [1.0, p.item()]
    assert p.item() < 1.0


def test_a_deep_copy_goes_on_by_itself(backend, train, spiky_gradients, snapshot, assert_bitwise_equal):
    p = torch.nn.Parameter(floats((16, 32), seed=1))
    optimizer = ladderkern.SPAM([p], density=0.5, reset_interval=4, warmup_steps=1, unclipped_steps=1)
    gradients = [[g] for g in spiky_gradients(12, (16, 32))]
    train(optimizer, gradients[:6])
    twin, before = copy.deepcopy(optimizer), snapshot(optimizer)
    train(twin, gradients[6:])
    assert_bitwise_equal(snapshot(optimizer), before)
    train(optimizer, gradients[6:])
    assert_bitwise_equal(snapshot(optimizer), snapshot(twin))


def test_zero_grad_sets_gradients_to_none(backend):
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = ladderkern.SPAM([p])
    p.grad = torch.ones(1)
    optimizer.zero_grad()
    assert p.grad is None


def test_capturable_gives_the_same_numbers(backend, train, spiky_gradients, assert_bitwise_equal):
    params = [torch.nn.Parameter(floats((33,), seed=1)) for _ in range(2)]
    for p, capturable in zip(params, (False, True), strict=True):
        train(ladderkern.SPAM([p], capturable=capturable), [[g] for g in spiky_gradients(5, (33,))])
    assert_bitwise_equal(params[:1], params[1:])
