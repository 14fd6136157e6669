"""What torch.save writes is read by torch.load(weights_only=True), the default, wherever ladderkern is imported."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ladderkern
from ladderkern.testing import floats

OFFSETS = torch.tensor([0, 4, 4, 10])


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def same(a, b):
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def trained():
    parameters = [torch.nn.Parameter(floats(shape, seed=n)) for n, shape in enumerate([(16, 32), (7,)])]
    optimizer = ladderkern.SPAM(parameters, lr=torch.tensor(0.01), density=0.5, mask_unit="row", state_dtype=torch.bfloat16)
    for p in parameters:
        p.grad = floats(p.shape, seed=9)
    optimizer.step()
    return optimizer


def test_the_state_of_spam():
    optimizer, fresh = trained(), trained()
    fresh.load_state_dict(torch.load(saved(optimizer.state_dict()), weights_only=True))
    for ours, theirs in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(same(ours[key], theirs[key]) for key in ours)


TABLES = {
    "table": lambda: ladderkern.DistanceTable(floats((20, 30), seed=1), "euclidean", torch.bfloat16),
    "codebook": lambda: ladderkern.DistanceTable(floats((20, 5), seed=1), order=torch.arange(20).flip(0)),
}


@pytest.mark.parametrize("storage", TABLES)
def test_a_distance_table(storage):
    table = TABLES[storage]()
    assert table.storage == storage
    other = torch.load(saved(table), weights_only=True)
    assert other.options == table.options
    assert same(other.data, table.data)
    assert same(other(torch.arange(20)), table(torch.arange(20)))


@pytest.mark.parametrize("normalizer", [None, 3, torch.tensor(3.0)], ids=str)
def test_the_loss_as_a_module(normalizer):
    module = ladderkern.TokenDiscrepancyLoss(TABLES["table"](), image_start=2, normalizer=normalizer, shift=1)
    other = torch.load(saved(module), weights_only=True)
    logits, labels = floats((3, 9, 25)), torch.arange(27).view(3, 9) % 25
    assert same(other(logits, labels), module(logits, labels))


@pytest.mark.parametrize("options", [{}, {"class_weights": [0.0, 1.0], "strict": True}], ids=str)
def test_a_prm_state_goes_on_where_it_was(options):
    state = ladderkern.prm.StepState.of_steps(floats((10, 2), seed=1), OFFSETS, **options)
    other = torch.load(saved(state), weights_only=True)
    more = floats((3, 2), seed=2)
    for a, b in zip(other.append(more).scores(), state.append(more).scores(), strict=True):
        assert same(a, b)


def test_scores():
    scores = ladderkern.prm.score_steps(floats((10, 2), seed=1), OFFSETS)
    other = torch.load(saved(scores), weights_only=True)
    assert type(other) is type(scores)
    assert all(same(a, b) for a, b in zip(other, scores, strict=True))


def test_another_process_reads_them_once_ladderkern_is_imported(tmp_path):
    file = Path(tmp_path, "all.pt")
    torch.save([trained().state_dict(), TABLES["table"](), ladderkern.prm.StepState.empty(2)], file)
    load = f"print(len(torch.load({str(file)!r}, weights_only=True)))"
    for imports, code in (("import torch", 1), ("import torch, ladderkern", 0)):
        done = subprocess.run([sys.executable, "-c", f"{imports}\n{load}"], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
