"""Examples in docstrings are run, and public names have one."""

import doctest
import inspect
import types

import pytest
import torch

import ladderkern

# What needs several ranks, a model of transformers or a tokenizer is shown by examples/ and the README's blocks instead.
ELSEWHERE = {"StepCollator", "chameleon_hidden", "chameleon_logits"}
MODULES = [ladderkern, ladderkern.spam, ladderkern.discrepancy, ladderkern.prm]
NAMES = {
    name: value
    for module in MODULES
    for name in module.__all__
    if callable(value := getattr(module, name)) and not isinstance(value, types.ModuleType)
}
# Of the ladder's names those that need neither ranks nor a model.
NAMES |= {name: getattr(ladderkern.ladder, name) for name in ("AlphaBeta", "column_linear")}


@pytest.mark.parametrize("name", sorted(NAMES.keys() - ELSEWHERE))
def test_example_of_a_public_name_runs(name):
    value = NAMES[name]
    context = {"torch": torch, "ladderkern": ladderkern, "model": torch.nn.Linear(4, 4), name: value}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(value), context, name, None, None)
    assert test.examples, f"{name} has no example"
    failures = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_no_name_is_excused_that_has_an_example():
    assert {name for name in ELSEWHERE if ">>>" in (inspect.getdoc(NAMES[name]) or "")} == set()
