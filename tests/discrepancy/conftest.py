"""Cases as training has them, an oracle in extended precision, and the plain eager chain that users would write."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ladderkern
from ladderkern.testing import floats

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours

METRICS = ("mse", "sqeuclidean", "euclidean")
STORAGES = ("table", "codebook")


class Case(SimpleNamespace):
    """logits, labels, table, start, N, and the distances D that the table stands for."""

    def loss(self, logits=None, labels=None, **options):
        """The discrepancy loss of this case, or of other logits and labels."""
        logits = self.logits if logits is None else logits
        labels = self.labels if labels is None else labels
        return ladderkern.token_discrepancy_loss(logits, labels, self.table, **{"image_start": self.start, **options})


def make_case(
    T=23, V=90, N=61, d=20, start=4, dtype=torch.float32, metric="mse", storage="table", table_dtype=torch.float16, seed=0,
    scale=2.0, offset=0, gap=0, order=None,
):  # fmt: skip
    """Logits (``gap`` columns apart from the next row, ``offset`` into their memory), labels of image, text and padding."""
    wide = floats((T, V + gap), torch.float64, seed=seed).mul_(scale).to(dtype)
    buffer = torch.zeros(offset + wide.numel(), dtype=dtype)
    logits = buffer[offset:].view(T, V + gap)[:, :V].copy_(wide[:, :V])
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(start, start + N, (T,), generator=generator)
    if start + N < V:
        labels[2::7] = torch.randint(start + N, V, labels[2::7].shape, generator=generator)
    labels[3::7] = 0 if start else -100
    labels[5::7] = -100
    if T > 12:  # the first and the last image column
        labels[0], labels[1] = start, start + N - 1
    table = ladderkern.DistanceTable(floats((N, d), seed=seed + 1), metric, table_dtype, order=order, storage=storage)
    return Case(logits=logits, labels=labels, table=table, start=start, N=N, D=true_distances(table))


def true_distances(table):
    """The distances that the table stands for, from what it stores, in 80-bit numbers, as float64.  [N, N]"""
    data = table.data.double().numpy().astype(np.longdouble)
    if table.storage == "table":
        D = data * table.scale + table.offset
    else:
        D = ((data[:, None] - data[None]) ** 2).sum(-1)
        D = {"mse": D / data.shape[1], "euclidean": np.sqrt(D)}.get(table.metric, D)
    return torch.from_numpy(D.astype(np.float64)).fill_diagonal_(0.0)


def oracle(logits, labels, D, start, grad=None, grad_ce=None, ignore_index=-100, smoothing=0.0):
    """Everything in 80-bit numbers and closed form, as float64 tensors: (loss, ce, gradient of grad * loss + grad_ce * ce)."""
    x, D = logits.detach().double().numpy().astype(np.longdouble), D.numpy().astype(np.longdouble)
    T, V = x.shape
    N = len(D)
    grad = np.ones(T) if grad is None else grad.double().numpy()
    joint = grad_ce is not None
    grad_ce = grad_ce.double().numpy() if joint else np.zeros(T)
    loss, ce, gradient = np.zeros(T, np.longdouble), np.zeros(T, np.longdouble), np.zeros((T, V), np.longdouble)
    with np.errstate(all="ignore"):
        for t, y in enumerate(labels.tolist()):
            if start <= y < start + N:
                p = _softmax(x[t, start : start + N])
                loss[t] = (p * D[y - start]).sum()
                gradient[t, start : start + N] += grad[t] * p * (D[y - start] - loss[t])
            if joint and y != ignore_index:
                target = np.full(V, smoothing / V, np.longdouble)
                target[y] += 1 - smoothing
                shifted = x[t] - x[t].max()
                log_p = shifted - np.log(np.exp(shifted).sum())
                ce[t] = -np.where(target > 0, target * log_p, 0).sum()
                gradient[t] += grad_ce[t] * (_softmax(x[t]) - target)
    return tuple(torch.from_numpy(a.astype(np.float64)) for a in (loss, ce, gradient))


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def eager(logits, labels, D, start):
    """The good eager chain: softmax of the image columns in float32 times gathered rows.  [T]"""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    N = len(D)
    image = (labels >= start) & (labels < start + N)
    rows = D.to(dtype)[torch.where(image, labels - start, 0)]
    p = torch.softmax(logits[:, start : start + N].to(dtype), dim=1)
    return torch.where(image, (p * rows).sum(1), 0.0)


def eager_joint(logits, labels, D, start, ignore_index=-100, smoothing=0.0):
    """(cross_entropy, discrepancy) of each row by torch's own functions."""
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    ce = F.cross_entropy(wide, labels, reduction="none", ignore_index=ignore_index, label_smoothing=smoothing)
    return ce, eager(logits, labels, D, start)


@pytest.fixture
def plain():
    """The helpers above."""
    return SimpleNamespace(make_case=make_case, oracle=oracle, eager=eager, eager_joint=eager_joint, distances=true_distances)


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Triton's blocks have 64 columns."""
    from ladderkern.discrepancy import kernels

    monkeypatch.setattr(kernels, "_blocks", lambda *_: {"BLOCK": 64, "num_warps": 1})


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request):
    """Rows here fit into one block; with blocks of 64 columns they do not, and end in the middle of one."""
    if request.param == "many blocks":
        request.getfixturevalue("small_blocks")
