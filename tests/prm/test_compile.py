"""torch.compile without graph breaks, and export."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from ladderkern import prm
from ladderkern.testing import floats


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_of(s):
    """Something of every differentiable field, without the NaN of empty responses and of tokens that are no steps."""
    fields = (s.margin, s.prob, s.log_prob, s.min, s.max, s.last, s.mean, s.log_product, s.geometric_mean, s.mean_margin,
              s.min_margin, s.max_margin, s.last_margin)  # fmt: skip
    return sum(torch.where(v.isnan(), 0.0, v).sum() for v in fields) + (s.product * s.count).sum()


def weighted(x, mask):
    return prm.score_masked(x, mask, class_weights=(0.0, 0.5, 1.0))


def masked(x, mask):
    return prm.score_masked(x, mask, positive=2, threshold=0.3, strict=True)


def gathered(x, mask):
    return prm.score_steps(*prm.gather_steps(x, mask, 14), positive=0)


def two_columns(x, mask):
    return prm.score_steps(*prm.gather_steps(x, mask, 14, columns=(2, 0)))


def by_token(x, mask):
    ids = torch.where(mask, 7, 3)
    steps, offsets = prm.gather_steps_by_token(
        x, ids, (7, 8), num_steps=14, ignore_before=torch.zeros(len(ids), dtype=torch.int64)
    )
    return prm.score_steps(steps, offsets)


def probabilities(x, mask):
    steps, offsets = prm.gather_steps(x[..., 0], mask, 14)
    return prm.score_probs(torch.sigmoid(steps), offsets)


FUNCTIONS = [weighted, masked, gathered, two_columns, by_token, probabilities]


def inputs(seed=0, B=4, T=9, steps=14):
    mask = torch.zeros(B * T, dtype=torch.bool)
    mask[torch.randperm(B * T, generator=torch.Generator().manual_seed(seed))[:steps]] = True
    mask = mask.view(B, T)
    return floats((B, T, 3), seed=seed), mask


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_scores_equal_eager_ones(backend, function, compiler):
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for seed in (0, 1):
        logits, mask = inputs(seed)
        results = []
        for f in (function, compiled):
            x = logits.clone().requires_grad_()
            s = f(x * 1.5, mask)
            loss_of(s).backward()
            results.append((*s, x.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_the_number_of_steps_may_change(backend):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(prm.score_steps, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for steps in (14, 23, 31):
        x, offsets = floats((steps, 2)), torch.tensor([0, 5, 5, steps])
        torch.testing.assert_close(compiled(x, offsets), prm.score_steps(x, offsets), equal_nan=True)
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[-1]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_scores_are_exported(backend, function):
    class Model(torch.nn.Module):
        def forward(self, x, mask):
            return tuple(function(x, mask))

    arguments = inputs()
    program = torch.export.export(Model(), arguments)
    for a, b in zip(program.module()(*arguments), Model()(*arguments), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_nothing_waits_for_a_value(function):
    # a fake tensor has none: whatever would synchronise a device is an error on it
    with FakeTensorMode() as mode:
        x, mask = (mode.from_tensor(t) for t in inputs())
        x.requires_grad_()
        s = function(x, mask)
        loss_of(s).backward()
    assert x.grad.shape == x.shape
