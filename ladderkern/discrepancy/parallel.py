"""The losses of logits whose vocabulary is sharded over the ranks of a group."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..runtime import backend
from ..runtime.checks import values_readable
from ..runtime.dtypes import wide
from .ops import check_columns, check_inputs, check_smoothing, differentiable_once
from .reference import distance_rows, exact_sum, exponentials, image_codes
from .rows import RowStatistics, check_vocabulary


def group_of(group: Any) -> Any:
    """The group to speak to, None for none: no group, or one of a single rank.

    Raises:
        BackendUnavailable: a backend other than the reference was asked for by name.
    """
    if group is None or dist.get_world_size(group) == 1:
        return None
    if backend.current() not in ("auto", "reference"):
        reason = "a vocabulary sharded over a group is served by plain PyTorch alone"
        raise backend.BackendUnavailable(f"backend {backend.current()!r} cannot serve group=: {reason}")
    return group


class _ImageColumns(NamedTuple):
    """The part of the image columns that may lie in this shard: a fixed number, of which ``inside`` are real."""

    position: Tensor  # column of the shard            [n] int64
    code: Tensor  # image column number           [n] int64
    inside: Tensor  # [n] bool


class VocabularyShard:
    """Forward and backward of rows whose columns are this rank's part of the vocabulary; the parts lie in rank order.

    Two all-reduces a forward, of at most 2 and 5 numbers a row, and one gather of the parts' widths, which no host reads:
    parts may differ in width or be empty. Plain PyTorch on every device; labels and table are whole on every rank.

    ``joint``: with cross-entropy over all columns, else its results are zeros.
    """

    def __init__(self, group: Any, table: Tensor, options: dict[str, Any], joint: bool) -> None:
        self.group = group
        self.table = table
        self.distances = {name: options[name] for name in ("metric", "offset", "scale")}
        self.image_start = options["image_start"]
        self.joint = joint
        self.ignore_index = options.get("ignore_index", -100)
        self.label_smoothing = options.get("label_smoothing", 0.0)

    def place(self, width: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(first column of this shard, width of the vocabulary), 0-dim int64 tensors; ``width``: of this shard.

        Raises:
            ValueError, IndexError: image columns or labels outside the vocabulary, where values may be read.
        """
        own = torch.full((1,), width, dtype=torch.int64, device=labels.device)
        widths = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(widths, own, group=self.group)
        ends = torch.cat(widths).cumsum(0)
        if values_readable(labels):
            check_columns(self.image_start, self.table.shape[0], int(ends[-1]))
            if self.joint:
                check_vocabulary(labels, ends[-1], self.ignore_index)
        return ends[dist.get_rank(self.group)] - width, ends[-1]

    def forward(self, logits: Tensor, labels: Tensor, place: tuple[Tensor, Tensor]) -> tuple[Tensor, RowStatistics]:
        """(cross_entropy, statistics with the discrepancy) of each row.  [T]"""
        check_inputs(logits, labels, self.table, self.distances["metric"])
        check_smoothing(self.label_smoothing)
        first, V = place
        dtype = wide(logits.dtype)
        columns = self._image_columns(logits, first)
        codes, image = image_codes(labels, self.image_start, self.table.shape[0])
        x = self._image_logits(logits, image, columns)
        tops = [_row_max(x)]
        if self.joint:
            ignored = labels == self.ignore_index
            text = torch.where(ignored[:, None], 0.0, logits.to(dtype))
            tops.append(_row_max(text))
        packed = torch.stack(tops)
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=self.group)
        image_top, top = torch.where(image, packed[0], 0.0), packed[-1]
        e = exponentials(x, image_top)
        sums = [exact_sum(e), exact_sum(e * self._distance_rows(codes, columns, dtype))]
        if self.joint:
            shifted = text - top[:, None]
            own = labels[:, None] - first == torch.arange(logits.shape[1], device=logits.device)
            sums += [exact_sum(exponentials(text, top)), exact_sum(torch.where(own, shifted, 0.0))]
            if self.label_smoothing > 0:
                sums.append(exact_sum(shifted))
        packed = torch.stack(sums)
        dist.all_reduce(packed, dist.ReduceOp.SUM, group=self.group)
        image_total, discrepancy = packed[0], torch.where(image, packed[1] / packed[0], 0.0)
        cross_entropy, total = torch.zeros_like(discrepancy), torch.zeros_like(discrepancy)
        if self.joint:
            total = torch.where((labels < 0) | (labels >= V), float("nan"), packed[2])
            cross_entropy = total.log() - (1.0 - self.label_smoothing) * packed[3]
            if self.label_smoothing > 0:
                cross_entropy = cross_entropy - self.label_smoothing * packed[4] / V
            cross_entropy, top, total = (torch.where(ignored, 0.0, t) for t in (cross_entropy, top, total))
        rows = (t.to(dtype) for t in (discrepancy, top, total, image_top, image_total))
        return cross_entropy.to(dtype), RowStatistics(*rows)

    def backward(self, grads: tuple[Tensor, Tensor], logits: Tensor, labels: Tensor, place: Any, rows: RowStatistics) -> Tensor:
        """The gradient of this rank's columns from those of both terms.  [T, V of this rank]"""
        first, V = place
        dtype = wide(logits.dtype)
        gradient = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
        if self.joint:
            p = exponentials(logits.to(dtype), rows.top) / rows.total[:, None]
            own = labels[:, None] - first == torch.arange(logits.shape[1], device=logits.device)
            text = p - (own.to(dtype) * (1.0 - self.label_smoothing) + self.label_smoothing / V.to(dtype))
            gradient = torch.where((labels == self.ignore_index)[:, None], 0.0, grads[0][:, None] * text)
        columns = self._image_columns(logits, first)
        codes, image = image_codes(labels, self.image_start, self.table.shape[0])
        x = self._image_logits(logits, image, columns)
        p = exponentials(x, rows.image_top) / rows.image_total[:, None]
        part = p * (self._distance_rows(codes, columns, dtype) - rows.discrepancy[:, None])
        part = torch.where(image[:, None] & columns.inside, grads[1][:, None] * part, 0.0)
        return gradient.index_add_(1, columns.position, part).to(logits.dtype)

    def _image_columns(self, logits: Tensor, first: Tensor) -> _ImageColumns:
        num_codes, width = self.table.shape[0], logits.shape[1]
        position = torch.arange(min(num_codes, width), device=logits.device) + (self.image_start - first).clamp(min=0)
        code = position + (first - self.image_start)
        inside = (position < width) & (code < num_codes)
        return _ImageColumns(position.clamp(max=max(width - 1, 0)), code.clamp(max=num_codes - 1), inside)

    def _image_logits(self, logits: Tensor, image: Tensor, columns: _ImageColumns) -> Tensor:
        x = logits.index_select(1, columns.position).to(wide(logits.dtype))
        return torch.where(image[:, None] & columns.inside, x, float("-inf"))

    def _distance_rows(self, codes: Tensor, columns: _ImageColumns, dtype: torch.dtype) -> Tensor:
        return distance_rows(codes, self.table, dtype=dtype, columns=columns.code, **self.distances)


def _row_max(x: Tensor) -> Tensor:
    """Largest of each row, -inf where there are no columns.  [T]"""
    return x.amax(dim=1) if x.shape[1] else x.new_full((x.shape[0],), float("-inf"))


class ShardedLoss(torch.autograd.Function):
    """(cross_entropy, discrepancy) of each row, differentiable once in this rank's logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, shard: VocabularyShard, place: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        cross_entropy, statistics = shard.forward(logits, labels, place)
        ctx.save_for_backward(logits, labels, *place, *statistics)
        ctx.shard = shard
        return cross_entropy, statistics.discrepancy.clone()

    @staticmethod
    def backward(ctx: Any, grad_cross_entropy: Tensor, grad_discrepancy: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, first, V, *statistics = ctx.saved_tensors
        with torch.no_grad():
            rows = RowStatistics(*statistics)
            gradient = ctx.shard.backward((grad_cross_entropy, grad_discrepancy), logits, labels, (first, V), rows)
        gradient = differentiable_once("a sharded loss", gradient, logits, grad_cross_entropy, grad_discrepancy)
        return gradient, None, None, None
