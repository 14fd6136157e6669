"""torch.compile and export, with rows that are skipped."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ladderkern
from ladderkern.discrepancy import linear


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing compiled before is used: what lies on disk calls the ops as their schemas were then."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


def discrepancy(x, labels, table):
    return ladderkern.token_discrepancy_loss(x, labels, table)


def joint(x, labels, table):
    return ladderkern.cross_entropy_with_discrepancy(x, labels, table, label_smoothing=0.1, weight=0.5)


def shifted(x, labels, table):
    return ladderkern.token_discrepancy_loss(x[None], labels[None], table, shift=1, normalizer=torch.tensor(3.0))


def head(x, labels, table):
    return ladderkern.linear_cross_entropy_with_discrepancy(x[:, :20], x[:, :20].detach().repeat(4, 1), labels, table)


@pytest.mark.parametrize("function", [discrepancy, joint, shifted], ids=lambda f: f.__name__)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_losses_equal_eager_ones(plain, backend, function, compiler):
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for seed, ignored in ((0, False), (1, True), (2, False)):
        case = plain.make_case(seed=seed)
        if ignored:
            case.labels[:] = -100
        results = []
        for f in (function, compiled):
            x = (case.logits * 1.0).requires_grad_()
            loss = f(x * 1.5, case.labels, case.table)
            loss.backward()
            results.append((loss.detach(), x.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_the_linear_form_compiles(plain, backend, monkeypatch):
    monkeypatch.setattr(linear, "chunk_rows", lambda rows: 8)
    case = plain.make_case()
    results = []
    for f in (head, torch.compile(head, fullgraph=True, backend="aot_eager")):
        x = case.logits.clone().requires_grad_()
        loss = f(x, case.labels, case.table)
        loss.backward()
        results.append((loss.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_number_of_tokens_may_change(plain, backend):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(discrepancy, fullgraph=True, backend=counter, dynamic=True)
    table, compilations = plain.make_case().table, []
    for T in (23, 31, 40):
        case = plain.make_case(T=T)
        loss = compiled(case.logits, case.labels, table)
        torch.testing.assert_close(loss, discrepancy(case.logits, case.labels, table))
        compilations.append(counter.frame_count)
    assert compilations[0] == compilations[-1]


def test_the_module_is_exported(plain, backend):
    case = plain.make_case()
    module = ladderkern.TokenDiscrepancyLoss(case.table)
    program = torch.export.export(module, (case.logits, case.labels))
    torch.testing.assert_close(program.module()(case.logits, case.labels), module(case.logits, case.labels))
