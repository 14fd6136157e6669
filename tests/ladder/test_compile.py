"""torch.compile and export of the fused norms."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ladderkern
from ladderkern.testing import floats


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def one(x, update, weight):
    normed, stream = ladderkern.add_rms_norm(x, update, weight)
    return (normed * 2 + stream).square().sum()


def three(x, update, weight):
    normed, normed2, _ = ladderkern.add_rms_norm(x, update, weight, update2=x * 0.5, weight2=weight + 1, convention="float32")
    return (normed - normed2).square().sum()


def alone(x, update, weight):
    return ladderkern.rms_norm(x * update, weight).square().sum()


@pytest.mark.parametrize("function", [one, three, alone], ids=lambda f: f.__name__)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_norms_equal_eager_ones(backend, function, compiler):
    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend=compiler)):
        leaves = [floats(shape, seed=i).requires_grad_() for i, shape in enumerate([(2, 5, 24), (2, 5, 24), (24,)])]
        value = f(*(t * 1.0 for t in leaves))
        value.backward()
        results.append([value.detach(), *(t.grad for t in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_number_of_tokens_may_change(backend):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(one, fullgraph=True, backend=counter, dynamic=True)
    compilations = []
    for tokens in (7, 12, 31):
        x, update = floats((2, tokens, 24)), floats((2, tokens, 24), seed=1)
        torch.testing.assert_close(compiled(x, update, torch.ones(24)), one(x, update, torch.ones(24)))
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[-1]


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(floats((24,), seed=3))

    def forward(self, x, update):
        return ladderkern.add_rms_norm(x, update, self.weight)


def test_a_module_is_exported(backend):
    x, update = floats((3, 24)), floats((3, 24), seed=1)
    program = torch.export.export(Block(), (x, update))
    assert any("add_rms_norm" in str(node.target) for node in program.graph.nodes)
    for a, b in zip(program.module()(x, update), Block()(x, update), strict=True):
        assert torch.equal(a, b)
