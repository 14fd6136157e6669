"""A call of each op, forward and backward, as users make it: what must come out the same wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

import ladderkern
from ladderkern.testing import fingerprint_of, floats

TABLE = ladderkern.DistanceTable(floats((300, 20), seed=1))  # one for all threads
LABELS = torch.randint(0, 320, (150,), generator=torch.Generator().manual_seed(0))


def spam() -> Iterable[Tensor]:
    shapes = [(512, 96), (7,), (64, 160), *((n, 16) for n in range(1, 20))]
    parameters = [torch.nn.Parameter(floats(shape, seed=i)) for i, shape in enumerate(shapes)]
    optimizer = ladderkern.SPAM(
        parameters, density=0.5, state_dtype=torch.bfloat16, reset_interval=3, warmup_steps=1, unclipped_steps=1
    )
    for step in range(4):
        for i, p in enumerate(parameters):
            p.grad = floats(p.shape, seed=100 * step + i)
        optimizer.step()
    return [t for p in parameters for t in (p, *optimizer.state[p].values())]


def _with_gradients(outputs: Iterable[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    outputs = [t for t in outputs if t.is_floating_point()]
    grads = [torch.where(t.isnan(), 0.0, floats(t.shape, t.dtype, seed=5)) for t in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


def discrepancy() -> Iterable[Tensor]:
    logits = floats((150, 320), torch.bfloat16, seed=2).requires_grad_()
    return _with_gradients([ladderkern.token_discrepancy_loss(logits, LABELS, TABLE)], [logits])


def joint() -> Iterable[Tensor]:
    logits = floats((150, 320), seed=2).requires_grad_()
    loss = ladderkern.cross_entropy_with_discrepancy(logits, LABELS, TABLE, label_smoothing=0.1, reduction="none")
    return _with_gradients([loss], [logits])


def linear() -> Iterable[Tensor]:
    hidden, head = floats((150, 24), seed=3).requires_grad_(), floats((320, 24), seed=4).requires_grad_()
    loss = ladderkern.linear_cross_entropy_with_discrepancy(hidden, head, LABELS, TABLE)
    return _with_gradients([loss], [hidden, head])


def prm() -> Iterable[Tensor]:
    lengths = torch.arange(200) % 90
    logits = floats((int(lengths.sum()), 2), seed=6).requires_grad_()
    scores = ladderkern.prm.score_steps(logits, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))
    return [*_with_gradients(scores, [logits]), scores.argmin, scores.first_error]


def norm() -> Iterable[Tensor]:
    x, update = (floats((150, 300), torch.bfloat16, seed=seed).requires_grad_() for seed in (7, 8))
    weight = floats((300,), torch.bfloat16, seed=9).requires_grad_()
    alone = ladderkern.rms_norm(x, weight)
    return _with_gradients([*ladderkern.add_rms_norm(x, update, weight), alone], [x, update, weight])


JOBS: dict[str, Callable[[], Iterable[Tensor]]] = {job.__name__: job for job in (spam, discrepancy, joint, linear, prm, norm)}


def fingerprint(name: str, backend: str) -> str:
    """SHA-256 of what a job gives on a backend."""
    with ladderkern.backend(backend):
        return fingerprint_of(JOBS[name]())


class Fingerprints(Dataset[str]):
    """Item i: what job i gives in the process that is asked for it."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return len(JOBS)

    def __getitem__(self, i: int) -> str:
        return fingerprint(list(JOBS)[i], self.backend)
