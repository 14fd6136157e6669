"""The optimizer on the Triton backend in the interpreter."""

import pytest
import torch

import ladderkern
from ladderkern.testing import assert_within_budget, floats

pytestmark = pytest.mark.interpreter


@pytest.mark.parametrize("unit", ["element", "row"])
def test_the_optimizer_on_the_triton_backend(unit):
    def train(name):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
        options = {"density": 0.5, "mask_unit": unit, "reset_interval": 4, "warmup_steps": 2, "unclipped_steps": 1}
        optimizer = ladderkern.SPAM(model.parameters(), lr=0.01, weight_decay=0.1, **options)
        with ladderkern.backend(name):
            for _ in range(6):
                optimizer.zero_grad()
                model(floats((4, 16))).square().sum().backward()
                optimizer.step()
        return [p.detach() for p in model.parameters()]

    for ours, plain in zip(train("triton"), train("reference"), strict=True):
        assert_within_budget(ours, plain, plain.double())
