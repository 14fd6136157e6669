"""The joint loss of an LM head's output without that output: logits exist for one chunk of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import backend
from ..runtime.dtypes import wide
from .ops import CROSS_ENTROPY_DISCREPANCY, CROSS_ENTROPY_DISCREPANCY_BACKWARD, check_joint, differentiable_once
from .rows import RowStatistics, check_vocabulary


class WholeVocabulary:
    """Forward and backward of rows that hold all columns, by the ops: the unsharded twin of ``VocabularyShard``."""

    def __init__(self, group: None, table: Tensor, options: dict[str, Any], joint: bool) -> None:
        self.group = group
        self.table = table
        self.options = options
        self.overload = backend.select(CROSS_ENTROPY_DISCREPANCY, table)

    def place(self, width: int, labels: Tensor) -> tuple[()]:
        """Nothing: all columns are here. Raises IndexError for labels outside them, where values may be read."""
        check_vocabulary(labels, width, self.options["ignore_index"])
        return ()

    def forward(self, logits: Tensor, labels: Tensor, place: Any) -> tuple[Tensor, RowStatistics]:
        """(cross_entropy, statistics with the discrepancy) of each row.  [T]"""
        check_joint(logits, labels, self.table, **self.options)
        cross_entropy, *statistics = self.overload(logits, labels, self.table, **self.options)
        return cross_entropy, RowStatistics(*statistics)

    def backward(self, grads: tuple[Tensor, Tensor], logits: Tensor, labels: Tensor, place: Any, rows: RowStatistics) -> Tensor:
        """The gradient of the logits from those of both terms, by the backend of the forward.  [T, V]"""
        overload = getattr(CROSS_ENTROPY_DISCREPANCY_BACKWARD, self.overload._overloadname)
        return overload(*grads, logits, labels, self.table, *rows, **self.options)


def chunk_rows(rows: int) -> int:
    """Tokens whose logits exist at once: 1/32 of all, so that they and their gradient take 1/16 of what all would.

    At least 128 (matrix products of fewer rows are bound by reading the weight), at most 1024.
    """
    return max(128, min(1024, -(-rows // 32)))


def linear_rows(hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: Any) -> tuple[Tensor, Tensor]:
    """(cross_entropy, discrepancy) of the rows of ``hidden @ weight.T``.  hidden [T, H], weight [V, H] -> 2 x [T]

    Raises:
        TypeError, ValueError: naming lm_head_weight.
    """
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"lm_head_weight must have shape [V, {hidden.shape[1]}] for hidden states of {hidden.shape[1]}, "
                         f"got {tuple(weight.shape)}")  # fmt: skip
    if weight.device != hidden.device:
        raise ValueError(f"lm_head_weight must be on the device of hidden, {hidden.device}, got {weight.device}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif weight.dtype == hidden.dtype:
        dtype = hidden.dtype
    else:
        raise TypeError(
            f"lm_head_weight must have the dtype of hidden, {hidden.dtype}, or run under autocast, got {weight.dtype}"
        )
    return LinearLoss.apply(hidden, weight, labels, vocabulary, dtype)  # type: ignore[no-any-return]


class LinearLoss(torch.autograd.Function):
    """Rows of both terms, differentiable once in the hidden states and the weight. The backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, vocabulary: Any, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        place = vocabulary.place(weight.shape[0], labels)
        parts = []
        with torch.autocast(hidden.device.type, enabled=False):
            weight_, size = weight.to(dtype), chunk_rows(len(labels))
            logits = weight_.new_empty((min(size, len(labels)), weight.shape[0]))
            for h, y in zip(hidden.split(size), labels.split(size), strict=True):
                chunk = torch.mm(h.to(dtype), weight_.T, out=logits[: len(h)])
                parts.append(vocabulary.forward(chunk, y, place))
        cross_entropy = torch.cat([part[0] for part in parts])
        statistics = [torch.cat(columns) for columns in zip(*(part[1] for part in parts), strict=True)]
        ctx.save_for_backward(hidden, weight, labels, *place, *statistics)
        ctx.vocabulary, ctx.dtype, ctx.num_place = vocabulary, dtype, len(place)
        return cross_entropy, statistics[0].clone()

    @staticmethod
    def backward(
        ctx: Any, grad_cross_entropy: Tensor, grad_discrepancy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight = ctx.saved_tensors[:2]
        gradients = LinearLoss.gradients(ctx, grad_cross_entropy, grad_discrepancy)
        reached = (hidden, weight, grad_cross_entropy, grad_discrepancy)
        of_hidden, of_weight = (g if g is None else differentiable_once("the linear loss", g, *reached) for g in gradients)
        return of_hidden, of_weight, None, None, None

    @staticmethod
    @torch.no_grad()
    def gradients(ctx: Any, grad_cross_entropy: Tensor, grad_discrepancy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Of the hidden states and the weight, each None where it is not needed."""
        hidden, weight, labels, *rest = ctx.saved_tensors
        place, statistics = rest[: ctx.num_place], rest[ctx.num_place :]
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        vocabulary, size = ctx.vocabulary, chunk_rows(len(labels))
        grad_hidden = torch.empty_like(hidden, dtype=ctx.dtype) if of_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide(ctx.dtype)) if of_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            weight_ = weight.to(ctx.dtype)
            # One buffer, and nothing small allocated between the chunks: a CPU allocator would put it into the hole that a
            # chunk leaves, so that the next one no longer fits.
            logits = weight_.new_empty((min(size, len(labels)), weight.shape[0]))
            chunks = (t.split(size) for t in (hidden, labels, grad_cross_entropy, grad_discrepancy, *statistics))
            for i, (h, y, gce, gd, *stats) in enumerate(zip(*chunks, strict=True)):
                h = h.to(ctx.dtype)
                chunk = torch.mm(h, weight_.T, out=logits[: len(h)])
                gradient = vocabulary.backward((gce, gd), chunk, y, place, RowStatistics(*stats))
                if grad_hidden is not None:
                    torch.mm(gradient, weight_, out=grad_hidden[i * size : i * size + len(h)])
                if grad_weight is not None:
                    _accumulate(grad_weight, gradient, h)
                del gradient
        if grad_hidden is not None:
            grad_hidden = _summed_over(vocabulary.group, grad_hidden).to(hidden.dtype)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


def _accumulate(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """total += gradient.T @ hidden, the product of low precision summed and kept in float32."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.T, hidden)
    elif total.device.type == "cuda":
        total.add_(torch.mm(gradient.T, hidden, out_dtype=total.dtype))
    else:
        total.addmm_(gradient.T.to(total.dtype), hidden.to(total.dtype))


def _summed_over(group: Any, part: Tensor) -> Tensor:
    if group is None:
        return part
    total = part.to(wide(part.dtype))
    torch.distributed.all_reduce(total, group=group)
    return total
