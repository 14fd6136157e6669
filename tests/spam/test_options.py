"""Options out of range and unfit tensors: the message names the culprit, and nothing has changed."""

import math
import warnings

import pytest
import torch

import ladderkern

BAD = [
    ("lr", -1.0),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", torch.tensor(-1.0)),
    ("lr", torch.ones(2)),
    ("lr", "fast"),
    ("betas", (0.9,)),
    ("betas", 0.9),
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, -0.1)),
    ("betas", (0.9, math.nan)),
    ("betas", (torch.tensor(1.5), 0.999)),
    ("betas", ("a", 0.999)),
    ("eps", -1e-8),
    ("eps", math.nan),
    ("eps", None),
    ("weight_decay", -0.1),
    ("weight_decay", math.inf),
    ("weight_decay", "little"),
    ("threshold", -1.0),
    ("threshold", math.nan),
    ("threshold", "high"),
    ("reset_interval", -1),
    ("reset_interval", 2.5),
    ("reset_interval", 2**31),
    ("warmup_steps", -1),
    ("warmup_steps", 1.5),
    ("warmup_steps", None),
    ("unclipped_steps", -1),
    ("unclipped_steps", 1.5),
    ("unclipped_steps", None),
    ("density", 0.3),
    ("density", 0.0),
    ("density", -0.25),
    ("density", 1.0625),
    ("density", math.nan),
    ("density", math.inf),
    ("density", "half"),
    ("density", None),
    ("density", [0.5]),
    ("mask_unit", "column"),
    ("mask_unit", None),
    ("bias_correction", "local"),
    ("bias_correction", None),
    ("zero_variance", "clip"),
    ("seed", 2**63),
    ("seed", 1.5),
    ("seed", None),
    ("state_dtype", torch.float16),
    ("state_dtype", torch.int32),
    ("state_dtype", "float32"),
]
CASE = pytest.mark.parametrize(("option", "value"), BAD, ids=[f"{name}={value}" for name, value in BAD])


@CASE
def test_an_option_out_of_range_is_named_at_construction(option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        ladderkern.SPAM([torch.nn.Parameter(torch.zeros(2))], **{option: value})


@CASE
def test_an_option_out_of_range_in_a_group_is_named_and_the_group_left_out(option, value):
    optimizer = ladderkern.SPAM([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises((ValueError, TypeError), match=option):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], option: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool], ids=str)
def test_parameters_that_are_not_real_floats_are_refused(dtype):
    fit = torch.nn.Parameter(torch.zeros(2))
    unfit = torch.nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=dtype.is_complex)
    with pytest.raises(TypeError, match=r"params\[1\]"):
        ladderkern.SPAM([fit, unfit])
    optimizer = ladderkern.SPAM([fit])
    with pytest.raises(TypeError, match=r"params\[0\]"):
        optimizer.add_param_group({"params": [unfit]})
    assert len(optimizer.param_groups) == 1


def test_an_unfit_named_parameter_is_called_by_its_name():
    with pytest.raises(TypeError, match="embedding"):
        ladderkern.SPAM([("embedding", torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64)))])


def test_density_is_refused_for_flat_fsdp1_parameters():
    p = torch.nn.Parameter(torch.zeros(64))
    p._fsdp_flattened = True  # FSDP1's mark
    ladderkern.SPAM([p])
    with pytest.raises(ValueError, match=r"density .*params\[0\]"):
        ladderkern.SPAM([p], density=0.5)


@pytest.mark.parametrize(
    "gradient", [torch.ones(4).to_sparse(), torch.ones(4, dtype=torch.complex64)], ids=["sparse", "complex"]
)
@pytest.mark.parametrize("own_group", [False, True])
def test_a_gradient_that_cannot_be_stepped_is_named_before_anything_moves(backend, gradient, own_group):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = ladderkern.SPAM([{"params": [p]} for p in params] if own_group else params)
    params[0].grad = torch.ones(4)
    params[1].grad_dtype = gradient.dtype
    params[1].grad = gradient
    with pytest.raises(TypeError, match=rf"gradient of params\[{int(not own_group)}\]"):
        optimizer.step()
    assert all((p == 1).all() for p in params)
    assert not any(optimizer.state.values())


def state_of(p, moment, step=None):
    return {"step": torch.tensor(0.0) if step is None else step, "exp_avg": moment, "exp_avg_sq": moment.clone()}


@pytest.mark.parametrize(
    ("error", "name", "state"),
    [
        (ValueError, "exp_avgs", lambda p: state_of(p, torch.zeros(3))),
        (TypeError, "exp_avgs", lambda p: state_of(p, torch.zeros(4, dtype=torch.float16))),
        (TypeError, "exp_avg_sqs", lambda p: {**state_of(p, torch.zeros(4)), "exp_avg_sq": torch.zeros(4).bfloat16()}),
        (TypeError, "steps", lambda p: state_of(p, torch.zeros(4), torch.tensor(0))),
    ],
    ids=["shape", "dtype", "two dtypes", "step"],
)
def test_a_state_that_does_not_fit_is_named_before_anything_moves(backend, error, name, state):
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizer = ladderkern.SPAM(params)
    optimizer.state[params[1]] = state(params[1])
    for p in params:
        p.grad = torch.ones(4)
    with pytest.raises(error, match=name + r"\[1\]"):
        optimizer.step()
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"reset_interval": 0, "density": 0.5}, "density < 1 without resets"), ({"warmup_steps": 501}, "warmup_steps=501")],
    ids=["never reset", "long ramp"],
)
def test_odd_pairs_of_options_give_one_warning(options, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ladderkern.SPAM([torch.nn.Parameter(torch.zeros(16, 16))], **options)
    assert [message in str(w.message) for w in caught] == [True]


def test_odd_pairs_of_options_in_two_groups_give_one_warning():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(16, 16))]} for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ladderkern.SPAM(groups, reset_interval=0, density=0.5)
    assert len(caught) == 1


def test_the_defaults_give_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ladderkern.SPAM([torch.nn.Parameter(torch.zeros(16, 16))], density=0.5)
    assert [str(w.message) for w in caught] == []
