"""Embedding, head and cross-entropy of a model whose vocabulary is sharded over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .sharded import Placer, local
from .sums import all_reduced, sum_gradients, sum_outputs

if dist.is_available():
    from torch.distributed.tensor import DTensor, Shard


class VocabularyParallelEmbedding(nn.Module):
    """This rank's rows of an embedding, summed over the ranks: a token is in the rows of one of them."""

    def __init__(self, embedding: nn.Embedding, place: Placer) -> None:
        super().__init__()
        self.mesh = place.mesh
        self.num_embeddings, self.padding_idx = embedding.num_embeddings, embedding.padding_idx
        self.weight = place.shard(embedding.weight, 0)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[..., hidden]

        Raises:
            IndexError: an id outside the vocabulary, on the CPU; elsewhere its row is zero.
        """
        _check_ids(input_ids, self.num_embeddings)
        weight = local(self.weight)
        start, rows = first_token(self.num_embeddings, self.mesh), weight.shape[0]
        inside = (input_ids >= start) & (input_ids < start + rows)
        if rows:
            padding = None if self.padding_idx is None else self.padding_idx - start
            padding = padding if padding in range(rows) else None
            found = F.embedding(torch.where(inside, input_ids - start, 0), weight, padding)
            found = torch.where(inside[..., None], found, 0)
        else:  # a rank without rows takes part in the sum, and has a gradient
            found = weight.new_zeros(*input_ids.shape, weight.shape[1]) + weight.sum()
        return sum_outputs(found, self.mesh.get_group(), "the embedding")


class VocabularyParallelHead(nn.Module):
    """This rank's columns of the logits."""

    def __init__(self, head: nn.Linear, place: Placer) -> None:
        super().__init__()
        self.mesh = place.mesh
        self.weight = place.shard(head.weight, 0)
        self.bias = place.shard(head.bias, 0)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = sum_gradients(hidden_states, self.mesh.get_group(), "the input of the head")
        return F.linear(hidden_states, local(self.weight), None if self.bias is None else local(self.bias))


def first_token(vocab_size: int, mesh: Any) -> int:
    """The first of this rank's tokens: shards are cut as :func:`torch.chunk` cuts."""
    return min(mesh.get_local_rank() * -(-vocab_size // mesh.size()), vocab_size)


def sharded(logits: Tensor, vocab_size: int, mesh: Any) -> Any:
    """The DTensor of which ``logits`` are this rank's columns."""
    shape = torch.Size((*logits.shape[:-1], vocab_size))
    stride = torch.empty(shape, device="meta").stride()  # parts may differ in width
    return DTensor.from_local(logits, mesh, [Shard(logits.dim() - 1)], run_check=False, shape=shape, stride=stride)


def complete_logits(model: Any, inputs: Any, output: Any) -> Any:
    """A forward hook: logits become whole, or sharded DTensors in training with labels, where the loss has used them.

    They are plain local tensors until here, outside of what is compiled: a compiler cannot leave out gradients of DTensors.
    """
    named = not isinstance(output, tuple)
    with_loss = output.loss is not None if named else output[0].dim() == 0
    local_logits = output.logits if named else output[with_loss]
    logits = sharded(local_logits, model.config.vocab_size, model.lm_head.mesh)
    if not (with_loss and model.training):
        logits = logits.full_tensor()
    if named:
        output.logits = logits
        return output
    return (*output[:with_loss], logits, *output[with_loss + 1 :])


def vocabulary_parallel_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    mesh: Any,
    **unused: Any,
) -> Tensor:
    """What transformers' causal language model loss gives, of logits whose vocabulary is sharded.

    Two all-reduces, of one and of two numbers a position; no rank sees a row of logits whole.

    Args:
        logits: this rank's columns [batch, length, tokens of this rank].
        labels: [batch, length] int64; the target of position t is label t + 1.
        num_items_in_batch: divides the sum; the number of positions that count by default.
        shift_labels: the targets themselves, instead of labels.
        mesh: the DeviceMesh of one dimension that shares the vocabulary.

    Raises:
        IndexError: a target outside the vocabulary that is not ignore_index, on the CPU; elsewhere its loss is NaN.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    counted = targets != ignore_index
    _check_ids(torch.where(counted, targets, 0), vocab_size)
    rows, start = logits.flatten(0, -2), first_token(vocab_size, mesh)
    loss = CrossEntropy.apply(rows, targets, counted, start, vocab_size, mesh.get_group()).sum()
    return loss / (counted.sum() if num_items_in_batch is None else num_items_in_batch)


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row whose columns ``start`` and on are this rank's; 0 where not counted.  [T]"""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, counted: Tensor, start: int, vocab_size: int, group: Any) -> Tensor:
        columns = logits.shape[1]
        x = logits.to(torch.promote_types(logits.dtype, torch.float32))
        maximum = x.amax(1) if columns else x.new_full((x.shape[0],), float("-inf"))
        maximum = all_reduced(maximum, group, "all-reduce of the largest logits", "max")
        own = counted & (targets >= start) & (targets < start + columns)
        column = torch.where(own, targets - start, 0)
        target = torch.where(own, x.gather(1, column[:, None])[:, 0] - maximum, 0) if columns else torch.zeros_like(maximum)
        sums = torch.stack([torch.exp(x - maximum[:, None]).sum(1), target])
        total, target = all_reduced(sums, group, "all-reduce of the cross-entropy")
        ctx.save_for_backward(logits, maximum, total, own, column, counted)
        outside = (targets < 0) | (targets >= vocab_size)
        return torch.where(counted, torch.where(outside, float("nan"), total.log() - target), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, maximum, total, own, column, counted = ctx.saved_tensors
        gradient = torch.exp(logits.to(total.dtype) - maximum[:, None]) / total[:, None]
        if logits.shape[1]:
            gradient.scatter_add_(1, column[:, None], -own[:, None].to(total.dtype))
        gradient = torch.where(counted[:, None], grad[:, None] * gradient, 0)
        return gradient.to(logits.dtype), None, None, None, None, None


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    if not torch.compiler.is_compiling() and ids.device.type == "cpu" and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high >= vocab_size:
            raise IndexError(f"ids must be in [0, {vocab_size}), got {int(low)} to {int(high)}")
