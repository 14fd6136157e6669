"""What the token discrepancy is compared with: the published way, a good eager chain, its torch.compile, and cross-entropy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderkern.discrepancy import DistanceTable, cross_entropy_with_discrepancy, token_discrepancy_loss

CODE_DIM = 256
Loss = Callable[[Tensor], Tensor]  # of the logits
Builder = Callable[[], "Peer"]


class Problem(NamedTuple):
    """One batch of logits and labels: columns are the codes alone, or a vocabulary that holds them from ``start`` on."""

    rows: int
    codes: int
    columns: int
    dtype: torch.dtype
    images: float = 1.0  # share of the rows whose label is an image token; the others' are text

    @property
    def start(self) -> int:
        """First image column: as in Chameleon where there is text."""
        return 0 if self.columns == self.codes else 4

    def logits(self) -> Tensor:
        """A leaf of its own at each call, with the same numbers."""
        return _logits(self.rows, self.columns, self.dtype).clone().requires_grad_()

    def labels(self) -> Tensor:
        """Image and text tokens, each uniform over its columns, in an order that mixes them."""
        generator = torch.Generator().manual_seed(1)
        images = round(self.rows * self.images)
        codes = torch.randint(self.start, self.start + self.codes, (images,), generator=generator)
        if images == self.rows:
            return codes
        text = torch.randint(self.start + self.codes, self.columns, (self.rows - images,), generator=generator)
        return torch.cat([codes, text])[torch.randperm(self.rows, generator=generator)]


@functools.cache
def _logits(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return (2 * torch.randn((rows, columns), generator=torch.Generator().manual_seed(0))).to(dtype)


@functools.cache
def table(codes: int) -> DistanceTable:
    """Our table: mean squared distances of a normal codebook, kept in float16."""
    return DistanceTable(torch.randn((codes, CODE_DIM), generator=torch.Generator().manual_seed(2)))


@functools.cache
def _distances(codes: int, dtype: torch.dtype) -> Tensor:
    """The same distances as others keep them.  [N, N]"""
    return table(codes)(torch.arange(codes)).to(dtype)


def fast_bfloat16() -> bool:
    """Whether torch has a kernel for matrix products of bfloat16 on this CPU: without AVX-512 they take minutes."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Peer:
    """One loss of logits of its own; a step is its forward and its backward."""

    def __init__(self, problem: Problem, loss: Loss) -> None:
        self.logits, self.loss = problem.logits(), loss
        self.value = 0.0

    def prepare(self) -> None:
        """Before each step and not timed: gives the last gradient's memory back, as ``zero_grad`` does."""
        self.logits.grad = None

    def step(self) -> None:
        """What is timed: forward and backward."""
        loss = self.loss(self.logits)
        loss.backward()
        self.value = loss.detach()


def _builder(problem: Problem, loss: Loss) -> Builder:
    return lambda: Peer(problem, loss)


# ------------------------------------------------------------------------------------------------------ the discrepancy alone


def ours(problem: Problem) -> Builder:
    """``ladderkern.token_discrepancy_loss``."""
    labels, distances = problem.labels(), table(problem.codes)
    return _builder(problem, lambda x: token_discrepancy_loss(x, labels, distances, image_start=problem.start))


def published(problem: Problem) -> Builder:
    """The published code's steps in our own words (facts 1.4): rows by mask, columns by list, one-hot int64, a matrix product.

    Its table is bfloat16. For float32 logits, and where products of bfloat16 have no kernel (one step would take over 10
    minutes), it gets a float32 table, which is faster.
    """
    labels, start, codes = problem.labels(), problem.start, problem.codes
    dtype = torch.bfloat16 if problem.dtype is torch.bfloat16 and fast_bfloat16() else torch.float32
    distances = _distances(codes, dtype)
    columns = list(range(start, start + codes))
    is_code = torch.tensor(columns)

    def loss(x: Tensor) -> Tensor:
        image = torch.isin(labels, is_code)
        p = torch.softmax(x[image][:, columns].float(), dim=-1).to(dtype)
        one_hot = F.one_hot(labels[image] - start, codes)
        return (p * (one_hot.to(dtype) @ distances)).sum(dim=-1).mean()

    return _builder(problem, loss)


def eager(problem: Problem) -> Builder:
    """What a careful user writes: a softmax of the image columns times gathered rows of the table, in float32."""
    return _builder(problem, _chain(problem))


def compiled(problem: Problem) -> Builder:
    """The same under ``torch.compile``."""
    return _builder(problem, _compiled(_chain(problem, static=True)))


def _chain(problem: Problem, static: bool = False) -> Loss:
    """The good chain; of mixed labels it selects the image rows, or, with ``static`` shapes, masks the others."""
    labels, distances = problem.labels(), _distances(problem.codes, torch.float32)
    start, stop = problem.start, problem.start + problem.codes

    def every_row(x: Tensor) -> Tensor:
        return _expected(x[:, start:stop], distances[labels - start]).mean()

    def selected_rows(x: Tensor) -> Tensor:
        rows = ((labels >= start) & (labels < stop)).nonzero().squeeze(1)
        return _expected(x[:, start:stop][rows], distances[labels[rows] - start]).mean()

    def masked_rows(x: Tensor) -> Tensor:
        image = (labels >= start) & (labels < stop)
        losses = _expected(x[:, start:stop], distances[torch.where(image, labels - start, 0)])
        return torch.where(image, losses, 0).sum() / image.sum()

    if problem.images == 1:
        return every_row
    return masked_rows if static else selected_rows


def _expected(logits: Tensor, distances: Tensor) -> Tensor:
    return (torch.softmax(logits, dim=-1, dtype=torch.float32) * distances).sum(dim=-1)


def _compiled(loss: Loss) -> Loss:
    return torch.compile(loss, fullgraph=True, dynamic=False)


# -------------------------------------------------------------------------------------------------------- with cross-entropy


def joint(problem: Problem) -> Builder:
    """``ladderkern.cross_entropy_with_discrepancy``."""
    labels, distances = problem.labels(), table(problem.codes)
    return _builder(problem, lambda x: cross_entropy_with_discrepancy(x, labels, distances, image_start=problem.start))


def our_cross_entropy(problem: Problem) -> Builder:
    """The same op where no row is an image row: cross-entropy and nothing else."""
    return joint(problem._replace(images=0.0))


def cross_entropy(problem: Problem) -> Builder:
    """``F.cross_entropy``, in the dtype of the logits."""
    labels = problem.labels()
    return _builder(problem, lambda x: F.cross_entropy(x, labels))


def eager_sum(problem: Problem) -> Builder:
    """``F.cross_entropy`` plus the good chain."""
    return _builder(problem, _sum(problem))


def compiled_sum(problem: Problem) -> Builder:
    """The same under ``torch.compile``."""
    return _builder(problem, _compiled(_sum(problem, static=True)))


def _sum(problem: Problem, static: bool = False) -> Loss:
    labels, chain = problem.labels(), _chain(problem, static)
    return lambda x: F.cross_entropy(x, labels) + chain(x)
