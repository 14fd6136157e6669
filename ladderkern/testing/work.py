"""The least work of each op: bytes that must be read and written, and arithmetic, whatever the kernel.

Bytes assume that each element of an input is read once and each element of an output written once; what all rows share
(weights, a codebook) is read once in all. Operations count additions, multiplications, divisions, roots and exponentials in
the arithmetic dtype as one each, comparisons and selections not at all: enough to see that memory is the limit, no more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Work(NamedTuple):
    """Work of one op.

    Attributes:
        loads: bytes read.
        stores: bytes written.
        operations: arithmetic operations.
    """

    loads: int
    stores: int
    operations: int

    @property
    def bytes(self) -> int:
        """All traffic."""
        return self.loads + self.stores


def _wide(dtype: torch.dtype) -> int:
    """Bytes of a number in the arithmetic dtype."""
    return 8 if dtype == torch.float64 else 4


def spam_step(
    numel: int, param: torch.dtype, grad: torch.dtype, moments: torch.dtype, *, density: float = 1.0, row_mask: bool = False,
    restart: bool = False, decay: bool = False, scaled: bool = False,
) -> Work:  # fmt: skip
    """One step: p, g, m, v read and p, m, v written, the moments and what they need of g only where drawn.

    Args:
        density: share of the elements that are drawn.
        row_mask: whole rows are drawn, so p is not touched outside of them, unless ``decay`` or ``scaled``.
        restart: the first step of a cycle, which does not read the moments.
        decay: weight decay is on, which scales every element of p.
        scaled: gradients are unscaled in place: all of g is read and written.
    """
    drawn = round(numel * density)
    all_p = drawn if row_mask and not (decay or scaled) else numel
    p, g, m = param.itemsize, grad.itemsize, moments.itemsize
    loads = all_p * p + (numel if scaled else drawn) * g + (0 if restart else drawn * 2 * m)
    stores = all_p * p + (numel * g if scaled else 0) + drawn * 2 * m
    return Work(loads, stores, 16 * drawn)


def norm_forward(
    rows: int, hidden: int, dtype: torch.dtype, weight: torch.dtype, *, addends: int = 1, weights: int = 1, stream: bool = True
) -> Work:
    """x and its addends read, the stream and a normed row for each weight written; ``stream=False`` is the norm alone."""
    x, w = dtype.itemsize, weight.itemsize
    normed = torch.promote_types(dtype, weight).itemsize
    loads = rows * hidden * x * (1 + addends) + hidden * w * weights
    stores = rows * hidden * (x * stream + normed * weights) + rows * _wide(dtype)
    return Work(loads, stores, rows * hidden * (addends + 3 + weights))


def norm_backward(
    rows: int, hidden: int, dtype: torch.dtype, weight: torch.dtype, *, weights: int = 1, stream: bool = True
) -> Work:
    """The backward of :func:`norm_forward` without the sums over rows, which :func:`partial_sums` counts."""
    x, w = dtype.itemsize, weight.itemsize
    grad = torch.promote_types(dtype, weight).itemsize
    loads = rows * hidden * (x * (1 + stream) + grad * weights) + hidden * w * weights + rows * _wide(dtype)
    return Work(loads, rows * hidden * x, rows * hidden * (6 + 4 * weights))


def partial_sums(blocks: int, hidden: int, dtype: torch.dtype, weight: torch.dtype, *, weights: int = 1) -> Work:
    """Weight gradients of ``blocks`` programs, read once more and added up: written by the backward, which is not counted."""
    return Work(blocks * hidden * _wide(dtype) * weights, hidden * weight.itemsize * weights, blocks * hidden * weights)


def prm_forward(steps: int, responses: int, classes: int, dtype: torch.dtype, *, masked: int | None = None) -> Work:
    """Scores and offsets read; 3 numbers a step, 11 numbers, 4 indices and a flag a response written.

    Args:
        steps: rows of scores.
        masked: of those, how many a mask takes out: their scores are not read.
    """
    read = steps - (masked or 0)
    loads = read * classes * dtype.itemsize + (responses + 1) * 8 + (0 if masked is None else steps)
    return Work(loads, steps * 3 * _wide(dtype) + responses * (11 * _wide(dtype) + 4 * 8 + 1), read * (40 + 4 * classes))


def prm_backward(steps: int, responses: int, classes: int, dtype: torch.dtype, *, masked: int | None = None) -> Work:
    """The margin and 3 gradients a step, 11 gradients, 2 results and 3 indices a response read; a gradient a score written."""
    wide, read = _wide(dtype), steps - (masked or 0)
    loads = read * 4 * wide + responses * (13 * wide + 3 * 8) + (responses + 1) * 8 + (0 if masked is None else steps)
    return Work(loads, steps * classes * dtype.itemsize, read * (20 + 4 * classes))


class Rows(NamedTuple):
    """Rows of logits: all of them, the image rows, and those that count in no loss and read their label alone."""

    all: int
    image: int
    skipped: int = 0


def discrepancy_forward(rows: Rows, codes: int, dtype: torch.dtype, *, table: int = 2) -> Work:
    """The image columns of image rows and a row of the table for each, of ``table`` bytes a number; 3 numbers a row written."""
    loads = rows.all * 8 + rows.image * codes * (dtype.itemsize + table)
    return Work(loads, rows.all * 3 * _wide(dtype), rows.image * codes * 8)


def discrepancy_backward(rows: Rows, columns: int, codes: int, dtype: torch.dtype, *, table: int = 2) -> Work:
    """The same read again with 4 numbers an image row; the whole gradient written."""
    loads = rows.all * 8 + rows.image * (codes * (dtype.itemsize + table) + 4 * _wide(dtype))
    return Work(loads, rows.all * columns * dtype.itemsize, rows.image * codes * 6)


def joint_forward(rows: Rows, columns: int, codes: int, dtype: torch.dtype, *, table: int = 2) -> Work:
    """Each row that counts read once, with a row of the table for each image row; 6 numbers a row written."""
    read = rows.all - rows.skipped
    loads = rows.all * 8 + read * columns * dtype.itemsize + rows.image * codes * table
    return Work(loads, rows.all * 6 * _wide(dtype), read * columns * 5 + rows.image * codes * 4)


def joint_backward(rows: Rows, columns: int, codes: int, dtype: torch.dtype, *, table: int = 2) -> Work:
    """The same read again with 7 numbers a row that counts; the whole gradient written."""
    read = rows.all - rows.skipped
    loads = rows.all * 8 + read * (7 * _wide(dtype) + columns * dtype.itemsize) + rows.image * codes * table
    return Work(loads, rows.all * columns * dtype.itemsize, read * columns * 5 + rows.image * codes * 6)
