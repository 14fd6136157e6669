"""DistanceTable: what it stores, how exactly, at which cost, and what it refuses."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch

import ladderkern
from ladderkern.testing import floats

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)


def distances(codebook, metric):
    D = (codebook.double()[:, None] - codebook.double()[None]).square().sum(-1)
    return {"mse": D / codebook.shape[1], "sqeuclidean": D, "euclidean": D.sqrt()}[metric]


@DTYPES
@pytest.mark.parametrize("N", [1, 2, 70])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_distances_are_those_of_the_codebook(metric, storage, dtype, N, size):
    codebook = floats((N, 33)) * size
    table = ladderkern.DistanceTable(codebook, metric, dtype, storage=storage)
    D = distances(codebook, metric)
    actual = table(torch.arange(N)).double()
    assert (actual.diagonal() == 0).all()
    # One rounding of what is stored, and of float32 arithmetic on the way back.
    stored = torch.finfo(dtype).eps * (D - table.offset).abs().max() if storage == "table" else 0.0
    assert (actual - D).abs().max() <= stored + 4 * torch.finfo(torch.float32).eps * D.max()
    assert table.data.isfinite().all()


def test_a_common_shift_of_all_codes_costs_no_digits(metric, storage):
    codebook = floats((50, 33), torch.float64)
    tables = [ladderkern.DistanceTable(c, metric, torch.float32, storage=storage) for c in (codebook, codebook + 1e6)]
    near, far = (table(torch.arange(50)) for table in tables)
    torch.testing.assert_close(far, near)


def test_scale_is_a_power_of_two():
    for size in (1e-12, 1e-3, 1.0, 77.0, 1e15):
        table = ladderkern.DistanceTable(floats((20, 33)) * size)
        mantissa, _ = torch.frexp(torch.tensor(table.scale, dtype=torch.float64))
        assert mantissa == 0.5
        assert table.data.abs().max() < torch.finfo(torch.float16).max


@pytest.mark.parametrize("metric", ["mse", "euclidean"])
def test_float16_keeps_gradients_to_a_thousandth(metric):
    # facts 4.4: Gaussian codes concentrate, which is the hard case. There the published bfloat16 table loses 2 to 4 in 100.
    codebook, p, y = floats((2048, 256)), torch.softmax(floats((16, 2048), torch.float64, seed=1), dim=1), torch.arange(16)
    D = torch.cdist(codebook[:16].double(), codebook.double())
    D = D**2 / 256 if metric == "mse" else D

    def error(rows):
        g, exact = (p * (R - (p * R).sum(1, keepdim=True)) for R in (rows.double(), D))
        wrong = torch.arange(2048) != y[:, None]
        return ((g - exact)[wrong].norm() / exact[wrong].norm()).item()

    ours = error(ladderkern.DistanceTable(codebook, metric, storage="table")(y))
    assert ours <= 1e-3
    assert ours < error(D.bfloat16()) / 20


def test_the_rule_of_auto():
    assert ladderkern.DistanceTable(floats((50, 16))).storage == "codebook"
    assert ladderkern.DistanceTable(floats((50, 17))).storage == "table"
    assert ladderkern.DistanceTable(floats((32769, 17))).storage == "codebook"
    assert ladderkern.DistanceTable(floats((50, 2)), storage="table").data.shape == (50, 50)


def test_building_takes_64_mb_beyond_the_table():
    code = """
import resource, torch, ladderkern
torch.set_num_threads(1)
ladderkern.DistanceTable(torch.randn(64, 256), "euclidean")
codebook, order = torch.randn(6000, 256), torch.randperm(6000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
table = ladderkern.DistanceTable(codebook, "euclidean", order=order)
print(peak() - before - table.data.nbytes)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) <= 64e6


def test_the_codebook_is_detached_and_not_changed():
    codebook = torch.nn.Parameter(floats((20, 33)))
    before = codebook.detach().clone()
    table = ladderkern.DistanceTable(codebook)
    assert not table.data.requires_grad
    assert torch.equal(codebook.detach(), before)
    bf16 = ladderkern.DistanceTable(before.bfloat16())
    torch.testing.assert_close(bf16.data, ladderkern.DistanceTable(before.bfloat16().double()).data)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda o: torch.tensor(o, dtype=torch.int32)])
def test_order(storage, kind):
    codebook, order = floats((40, 33)), torch.randperm(40).tolist()
    table = ladderkern.DistanceTable(codebook, order=kind(order), storage=storage)
    expected = ladderkern.DistanceTable(codebook[order], storage=storage)
    torch.testing.assert_close(table(torch.arange(40)), expected(torch.arange(40)))


def test_it_is_built_where_the_codebook_is(storage):
    # Hugging Face builds models under a meta device.
    codebook, order = floats((40, 33)), torch.randperm(40).tolist()
    expected = ladderkern.DistanceTable(codebook, order=order, storage=storage)
    with torch.device("meta"):
        table = ladderkern.DistanceTable(codebook, order=order, storage=storage)
    assert torch.equal(table.data, expected.data)
    assert table.options == expected.options


def test_forward_takes_any_shape():
    table = ladderkern.DistanceTable(floats((20, 33)))
    codes = torch.randint(0, 20, (2, 3))
    assert torch.equal(table(codes)[1, 2], table(codes[1, 2]))
    assert table(codes).shape == (2, 3, 20)


@pytest.mark.parametrize("cast", [lambda t: t.bfloat16(), lambda t: t.double(), lambda t: t.to(torch.float32)])
def test_casts_and_moves_keep_the_dtype(storage, cast):
    table = ladderkern.DistanceTable(floats((20, 33)), storage=storage)
    before = table.data.clone()
    assert cast(table) is table
    assert torch.equal(table.data, before)
    assert table.data.dtype == before.dtype
    assert table.to("meta").data.is_meta
    table.data = before.to(torch.float64)  # as code that casts buffers by hand does
    with pytest.raises(TypeError, match="table must keep its dtype"):
        ladderkern.token_discrepancy_loss(torch.zeros(3, 30), torch.zeros(3, dtype=torch.long), table)


def test_copies_and_pickles(storage):
    table = ladderkern.DistanceTable(floats((20, 33)), "euclidean", storage=storage)
    assert table.state_dict() == {}
    assert list(table.parameters()) == []
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert torch.equal(other.data, table.data)
        assert other.options == table.options
    assert "20 codes of dimension 33" in repr(table)


BAD = [
    ("codebook", TypeError, {"codebook": [[1.0, 2.0]]}),
    ("codebook", TypeError, {"codebook": torch.ones(3, 4, dtype=torch.long)}),
    ("codebook", ValueError, {"codebook": torch.ones(3)}),
    ("codebook", ValueError, {"codebook": torch.ones(0, 4)}),
    ("codebook", ValueError, {"codebook": torch.ones(4, 0)}),
    ("codebook", ValueError, {"codebook": torch.tensor([[1.0, float("nan")]])}),
    ("codebook", ValueError, {"codebook": torch.tensor([[1.0], [float("-inf")]])}),
    ("codebook", ValueError, {"codebook": torch.tensor([[1e30], [-1e30]])}),
    ("metric", ValueError, {"metric": "cosine"}),
    ("dtype", ValueError, {"dtype": torch.int8}),
    ("storage", ValueError, {"storage": "disk"}),
    ("order", ValueError, {"order": [0, 1, 2, 2]}),
    ("order", ValueError, {"order": [0, 1, 2]}),
    ("order", ValueError, {"order": [0, 1, 2, 4]}),
    ("order", TypeError, {"order": [0.0, 1.0, 2.0, 3.0]}),
]


@pytest.mark.parametrize(("name", "error", "changes"), BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_unfit_arguments_are_named(name, error, changes):
    with pytest.raises(error, match=name):
        ladderkern.DistanceTable(**{"codebook": torch.randn(4, 3), **changes})
