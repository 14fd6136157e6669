"""TokenDiscrepancyLoss as part of a model."""

import copy
import io
import pickle

import pytest
import torch

import ladderkern
from ladderkern.testing import floats


def module_of(storage="table", **options):
    return ladderkern.TokenDiscrepancyLoss(floats((61, 20), seed=1), storage=storage, **options)


def test_it_is_the_function_with_its_table(plain, backend, storage):
    case = plain.make_case(storage=storage)
    module = module_of(storage)
    assert list(module.parameters()) == []
    expected = ladderkern.token_discrepancy_loss(case.logits, case.labels, case.table)
    assert torch.equal(module(case.logits, case.labels), expected)
    assert torch.equal(ladderkern.TokenDiscrepancyLoss(case.table)(case.logits, case.labels), expected)
    total = module_of(storage, reduction="sum")(case.logits, case.labels)
    torch.testing.assert_close(module(case.logits, case.labels, normalizer=7), total / 7)
    torch.testing.assert_close(module_of(storage, normalizer=7)(case.logits, case.labels), total / 7)


def test_options(plain):
    case = plain.make_case(T=24)
    x, labels = case.logits.view(2, 12, 90), case.labels.view(2, 12)
    options = {"image_start": 8, "reduction": "none", "shift": 1}
    actual = module_of(metric="euclidean", dtype=torch.float32, **options)(x, labels)
    table = ladderkern.DistanceTable(floats((61, 20), seed=1), "euclidean", torch.float32)
    assert torch.equal(actual, ladderkern.token_discrepancy_loss(x, labels, table, **options))


def test_casts_of_the_model_leave_the_table_alone(plain):
    case = plain.make_case()
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(4, 4), "loss": module_of()})
    expected = model["loss"](case.logits, case.labels)
    for cast in (lambda: model.bfloat16(), lambda: model.to("cpu", torch.float64), lambda: model.half(), lambda: model.float()):
        cast()
        assert model["loss"].table.data.dtype == torch.float16
        assert torch.equal(model["loss"](case.logits, case.labels), expected)
    assert model["head"].weight.dtype == torch.float32
    assert set(model.state_dict()) == {"head.weight", "head.bias"}
    model.load_state_dict(model.state_dict())


def test_copies_and_pickles(plain):
    case = plain.make_case()
    module = module_of()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    expected = module(case.logits, case.labels)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert torch.equal(other(case.logits, case.labels), expected)


@pytest.mark.parametrize(
    ("name", "options"), [("reduction", {"reduction": "avg"}), ("shift", {"shift": 3}), ("metric", {"metric": "cosine"})]
)
def test_unfit_arguments_are_named(name, options):
    with pytest.raises(ValueError, match=name):
        module_of(**options)


def test_it_trains(plain, backend):
    case = plain.make_case(dtype=torch.float64)
    x = case.logits.requires_grad_()
    module, optimizer = module_of(), torch.optim.SGD([x], lr=5.0)
    losses = []
    for _ in range(10):
        loss = module(x, case.labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
