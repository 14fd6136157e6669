"""state_dict and back: SPAM's own, torch's Adam and AdamW's, through pickle and weights-only files."""

import io
import pickle

import pytest
import torch

import ladderkern
from ladderkern.testing import floats

SHAPES = [(16, 32), (7,), (16, 16)]


def parameters(dtype=torch.float32):
    return [torch.nn.Parameter(floats(shape, dtype, seed=n)) for n, shape in enumerate(SHAPES)]


def gradients(steps, seed=0):
    return [[floats(shape, seed=100 * seed + 10 * t + n) for n, shape in enumerate(SHAPES)] for t in range(steps)]


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict_has_integer_keys_and_plain_values(backend, train):
    optimizer = ladderkern.SPAM(parameters(), density=0.5, state_dtype=torch.bfloat16)
    train(optimizer, gradients(2))
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert list(saved["state"]) == [0, 1, 2]
    assert all(set(s) == {"step", "exp_avg", "exp_avg_sq"} for s in saved["state"].values())
    assert saved["param_groups"][0]["reset_interval"] == 500
    assert saved["param_groups"][0]["density"] == 0.5


@pytest.mark.parametrize("options", [{}, {"density": 0.25}, {"state_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize(
    "way", [through_a_file, lambda s: pickle.loads(pickle.dumps(s)), dict], ids=["file", "pickle", "as is"]
)
def test_a_state_dict_comes_back_bitwise(backend, train, snapshot, assert_bitwise_equal, options, way):
    optimizer = ladderkern.SPAM(parameters(torch.bfloat16), **options)
    train(optimizer, gradients(3))
    fresh = ladderkern.SPAM([p.detach().clone().requires_grad_() for p in optimizer.param_groups[0]["params"]], **options)
    fresh.load_state_dict(way(optimizer.state_dict()))
    assert_bitwise_equal(snapshot(fresh), snapshot(optimizer))


def test_an_optimizer_may_be_pickled_whole(backend, train, snapshot, assert_bitwise_equal):
    optimizer = ladderkern.SPAM(parameters(), density=0.5, lr=torch.tensor(0.01))
    train(optimizer, gradients(3))
    twin = pickle.loads(pickle.dumps(optimizer))
    for o in (optimizer, twin):
        train(o, gradients(2, seed=1))
    assert_bitwise_equal(snapshot(twin), snapshot(optimizer))


def test_hyper_parameters_come_back_with_the_state(backend):
    options = {
        "lr": 0.5, "betas": (0.5, 0.75), "eps": 0.1, "weight_decay": 0.2, "threshold": 7.0, "reset_interval": 9,
        "warmup_steps": 3, "unclipped_steps": 2, "density": 0.25, "mask_unit": "row", "bias_correction": "cycle",
        "zero_variance": "freeze", "seed": 5, "maximize": True, "capturable": True, "state_dtype": torch.bfloat16,
    }  # fmt: skip
    fresh = ladderkern.SPAM(parameters())
    fresh.load_state_dict(through_a_file(ladderkern.SPAM(parameters(), **options).state_dict()))
    assert {name: fresh.param_groups[0][name] for name in options} == options


def test_loading_copies_and_leaves_the_state_dict_alone(backend, train, assert_bitwise_equal):
    optimizer, other = (ladderkern.SPAM(parameters()) for _ in range(2))
    train(optimizer, gradients(2))
    saved = optimizer.state_dict()
    before = [t.clone() for s in saved["state"].values() for t in s.values()]
    other.load_state_dict(saved)
    train(other, gradients(2, seed=1))
    assert_bitwise_equal([t for s in saved["state"].values() for t in s.values()], before)
    assert all(isinstance(t, torch.Tensor) for s in other.state.values() for t in s.values())


def test_float32_moments_of_bfloat16_parameters_are_not_truncated(backend, train, assert_bitwise_equal):
    optimizer = ladderkern.SPAM(parameters(torch.bfloat16))
    train(optimizer, gradients(3))
    saved = optimizer.state_dict()
    fresh = ladderkern.SPAM(parameters(torch.bfloat16))
    fresh.load_state_dict(saved)
    for p, s in zip(fresh.param_groups[0]["params"], saved["state"].values(), strict=True):
        assert not torch.equal(s["exp_avg_sq"].bfloat16().float(), s["exp_avg_sq"])
        assert_bitwise_equal([fresh.state[p][k] for k in s], list(s.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_loaded_moments_are_cast_to_state_dtype(backend, train, dtype):
    optimizer = ladderkern.SPAM(parameters())
    train(optimizer, gradients(1))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["state_dtype"] = dtype
    fresh = ladderkern.SPAM(parameters(torch.bfloat16))
    fresh.load_state_dict(saved)
    assert {fresh.state[p]["exp_avg"].dtype for p in fresh.param_groups[0]["params"]} == {dtype}
    assert {fresh.state[p]["step"].dtype for p in fresh.param_groups[0]["params"]} == {torch.float32}


def test_user_hooks_on_loading_still_run(backend, train):
    optimizer, fresh = (ladderkern.SPAM(parameters()) for _ in range(2))
    train(optimizer, gradients(1))
    seen = []

    def before(_, state_dict):
        seen.append("before")
        return {**state_dict, "state": {0: state_dict["state"][0]}}

    fresh.register_load_state_dict_pre_hook(before)
    fresh.register_load_state_dict_post_hook(lambda o: seen.append(type(next(iter(o.state.values()))["exp_avg"])))
    fresh.load_state_dict(optimizer.state_dict())
    assert seen == ["before", torch.Tensor]
    assert list(fresh.state) == fresh.param_groups[0]["params"][:1]


@pytest.mark.parametrize("saved_density", [1.0, 0.5])
def test_moments_of_another_shape_are_refused_and_nothing_changes(
    backend, train, snapshot, assert_bitwise_equal, saved_density
):
    other = ladderkern.SPAM([torch.nn.Parameter(torch.zeros(16, 48))], density=saved_density)
    train(other, [[torch.ones(16, 48)]])
    optimizer = ladderkern.SPAM([torch.nn.Parameter(torch.zeros(16, 32))], lr=0.5)
    train(optimizer, [[torch.ones(16, 32)]])
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="exp_avg of parameter 0"):
        optimizer.load_state_dict(other.state_dict())
    assert_bitwise_equal(snapshot(optimizer), before)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_another_number_of_parameters_is_refused_and_nothing_changes(backend, train, snapshot, assert_bitwise_equal):
    optimizer = ladderkern.SPAM(parameters())
    train(optimizer, gradients(1))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(ladderkern.SPAM(parameters()[:2]).state_dict())
    assert_bitwise_equal(snapshot(optimizer), before)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"maximize": True}], ids=str)
def test_checkpoints_of_adam_are_taken_up(backend, train, snapshot, assert_bitwise_equal, kind, options):
    old = kind(parameters(), lr=0.25, betas=(0.5, 0.75), **options)
    train(old, gradients(3))
    spam = ladderkern.SPAM([p.detach().clone().requires_grad_() for p in old.param_groups[0]["params"]], threshold=9.0)
    spam.load_state_dict(through_a_file(old.state_dict()))
    group = spam.param_groups[0]
    assert (group["lr"], group["betas"], group["threshold"]) == (0.25, (0.5, 0.75), 9.0)
    for p, q in zip(group["params"], old.param_groups[0]["params"], strict=True):
        assert set(spam.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
        assert_bitwise_equal([spam.state[p][k] for k in spam.state[p]], [old.state[q][k] for k in spam.state[p]])
    train(spam, gradients(2, seed=1))
    assert [s["step"].item() for s in spam.state.values()] == [5, 5, 5]


def test_options_that_a_checkpoint_lacks_stay_as_the_group_has_them(backend):
    params = parameters()
    spam = ladderkern.SPAM([{"params": params[:1], "threshold": 3.0}, {"params": params[1:], "density": 0.25}])
    old = torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}])
    spam.load_state_dict(old.state_dict())
    assert [(g["threshold"], g["density"]) for g in spam.param_groups] == [(3.0, 1.0), (5000.0, 0.25)]


def test_steps_saved_as_numbers_are_taken_up(backend, train):
    spam = ladderkern.SPAM(parameters())
    train(spam, gradients(2))
    saved = spam.state_dict()
    for s in saved["state"].values():
        s["step"] = 7  # as torch's Adam saved it before 1.12
    fresh = ladderkern.SPAM(parameters())
    fresh.load_state_dict(saved)
    train(fresh, gradients(1))
    assert [(s["step"].item(), s["step"].shape) for s in fresh.state.values()] == [(8, ())] * 3


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_dense_state_goes_back_into_adam(backend, train, assert_bitwise_equal, kind):
    spam = ladderkern.SPAM(parameters(), lr=0.25)
    train(spam, gradients(3))
    adam = kind([p.detach().clone().requires_grad_() for p in spam.param_groups[0]["params"]])
    adam.load_state_dict(through_a_file(spam.state_dict()))
    assert adam.param_groups[0]["lr"] == 0.25
    for p, q in zip(adam.param_groups[0]["params"], spam.param_groups[0]["params"], strict=True):
        assert_bitwise_equal([adam.state[p][k] for k in adam.state[p]], [spam.state[q][k] for k in adam.state[p]])
    before = [p.detach().clone() for p in adam.param_groups[0]["params"]]
    train(adam, gradients(1, seed=1))
    assert not any(torch.equal(p, b) for p, b in zip(adam.param_groups[0]["params"], before, strict=True))
    assert [s["step"].item() for s in adam.state.values()] == [4, 4, 4]
