"""Against the published code's arithmetic, written here in our own words (facts 1.1)."""

import pytest
import torch

import ladderkern
from ladderkern.testing import floats

N, START = 1024, 4


def published(logits, labels, codebook):
    """Euclidean distances in bfloat16, softmax in float32 rounded to bfloat16, product and mean in bfloat16."""
    S = torch.cdist(codebook.double(), codebook.double()).to(torch.bfloat16)
    image = (labels >= START) & (labels < START + N)
    chosen = torch.nn.functional.one_hot(labels[image] - START, N).to(torch.bfloat16) @ S
    p = torch.softmax(logits[image][:, START : START + N].float(), dim=-1).to(torch.bfloat16)
    return (p * chosen).sum(-1).mean()


@pytest.fixture
def problem():
    codebook = floats((N, 256)).bfloat16()
    logits = floats((40, N + 100), torch.float64, seed=1)
    labels = torch.randint(0, N + 50, (40,))
    D = torch.cdist(codebook.double(), codebook.double())
    return codebook, logits, labels, D


@pytest.mark.parametrize("storage", ["table", "codebook"])
def test_our_errors_are_far_below_the_published_chains(plain, backend, problem, storage):
    codebook, logits, labels, D = problem
    image = (labels >= START) & (labels < START + N)
    expected, _, gradient = plain.oracle(logits, labels, D.fill_diagonal_(0), START, torch.full((40,), 1 / image.sum().item()))
    table = ladderkern.DistanceTable(codebook, "euclidean", storage=storage)
    errors = {}
    for name, loss_of in (
        ("ours", lambda x: ladderkern.token_discrepancy_loss(x, labels, table, image_start=START)),
        ("published", lambda x: published(x, labels, codebook)),
    ):
        x = logits.float().requires_grad_()
        loss = loss_of(x)
        loss.backward()
        of_loss = abs(loss.item() - expected[image].mean().item()) / expected[image].mean().item()
        wrong = torch.arange(logits.shape[1]) != labels[:, None]
        of_gradient = ((x.grad.double() - gradient)[wrong].norm() / gradient[wrong].norm()).item()
        errors[name] = (of_loss, of_gradient)
    assert errors["ours"][0] < errors["published"][0] / 20
    assert errors["ours"][1] < min(1e-3, errors["published"][1] / 20)


def test_the_paper_and_its_code_are_a_constant_apart_for_one_code_pair():
    codebook = floats((2, 256))
    logits, labels = torch.tensor([[-100.0, 100.0]]), torch.tensor([0])
    paper = ladderkern.token_discrepancy_loss(logits, labels, ladderkern.DistanceTable(codebook, "mse"), image_start=0)
    code = ladderkern.token_discrepancy_loss(logits, labels, ladderkern.DistanceTable(codebook, "euclidean"), image_start=0)
    torch.testing.assert_close(code / paper, 16 / paper.sqrt())
