"""A run that is saved and resumed, at any step, equals the run that was not."""

import io

import pytest
import torch

import ladderkern
from ladderkern.testing import floats

STEPS = 20
SCHEDULE = {"reset_interval": 7, "warmup_steps": 3, "unclipped_steps": 2, "lr": 0.01, "weight_decay": 0.1}
SHAPES = [(16, 32), (5,)]
KINDS = {
    "dense": {},
    "element": {"density": 0.25},
    "row": {"density": 0.5, "mask_unit": "row"},
    "bfloat16 moments": {"state_dtype": torch.bfloat16},
    "bfloat16 moments, element": {"state_dtype": torch.bfloat16, "density": 0.25, "seed": 3},
}


def build(params, kind):
    return ladderkern.SPAM([p.detach().clone().requires_grad_() for p in params], **SCHEDULE, **KINDS[kind])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_at_any_step_is_bitwise_the_uninterrupted_run(
    backend, spiky_gradients, train, snapshot, assert_bitwise_equal, kind, dtype
):
    gradients = list(zip(*(spiky_gradients(STEPS, shape, seed=n) for n, shape in enumerate(SHAPES)), strict=True))
    whole = build([floats(shape, dtype, seed=50 + n) for n, shape in enumerate(SHAPES)], kind)
    checkpoints, states = [], []
    for entry in gradients:
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        checkpoints.append((file, [p.detach().clone() for p in whole.param_groups[0]["params"]]))
        train(whole, [entry])
        states.append(snapshot(whole))
    for at, (file, params) in enumerate(checkpoints):
        file.seek(0)
        torch.manual_seed(at)  # whatever the RNG state
        resumed = build(params, kind)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for n in range(at, min(at + 8, STEPS)):  # past the next reset: from there on the runs cannot part
            train(resumed, [gradients[n]])
            assert_bitwise_equal(snapshot(resumed), states[n])
