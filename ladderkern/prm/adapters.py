"""Step scores of what models give: hidden states before the head, and the function of the Qwen model card."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import check_mask, column_ids, gather_steps
from .scores import StepScores, score_masked, score_steps


def score_hidden(
    hidden: Tensor,
    mask: Tensor,
    head: Callable[[Tensor], Tensor],
    num_steps: int | None = None,
    columns: tuple[int, int] | None = None,
    **options: Any,
) -> StepScores:
    """Score hidden states: the head runs at the steps alone, not at every token (some 70 times as many).

    Args:
        hidden: [B, T, H], what the model's head gets. mask: [B, T] bool, where the steps are read.
        head: [S, H] -> [S, C], such as ``model.score`` or ``model.lm_head``.
        num_steps, columns: as for :func:`gather_steps`, columns being of the head's output: the (negative, positive) token ids
            of a language model. Of a plain ``torch.nn.Linear`` the two rows alone are multiplied.
        **options: positive, threshold, strict, class_weights of :func:`score_steps`, which also lists the errors.

    Returns:
        :class:`StepScores` of packed steps.

    >>> head = torch.nn.Linear(8, 2)
    >>> scores = ladderkern.prm.score_hidden(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), head)
    >>> scores.count
    tensor([3, 3])
    """
    check_mask(hidden, mask, "hidden")
    steps, offsets = gather_steps(hidden, mask, num_steps)
    if columns is None:
        logits = head(steps)
    elif type(head) is torch.nn.Linear and not head._forward_hooks and not head._forward_pre_hooks:
        ids = column_ids(columns, head.out_features, steps.device)
        logits = F.linear(steps, head.weight[ids], None if head.bias is None else head.bias[ids])
    else:
        logits = head(steps)
        logits = logits[:, column_ids(columns, logits.shape[1], logits.device)]
    return score_steps(logits, offsets, **options)


def make_step_rewards(logits: Tensor, token_masks: Tensor) -> list[list[float]]:
    """The function of that name on the Qwen2.5-Math-PRM model card: probability of class 1 at each step, as nested lists.

    Args:
        logits: [B, T, 2]. token_masks: [B, T] bool, ``input_ids == step_sep_id``.

    Returns:
        one list of floats for each row. The softmax is in float32, whatever dtype the logits have (the card's rounds to that of
        the logits), and a step whose probability underflows to 0 is a step like any other (the card's drops it and moves the
        scores of the steps behind it). Nothing is differentiable; one copy from the device, once for all rows.

    Raises:
        TypeError, ValueError: naming the argument; other than two classes, such as the logits of a whole vocabulary.

    Source: https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B (the function's signature and meaning).

    >>> ladderkern.prm.make_step_rewards(torch.zeros(1, 3, 2), torch.tensor([[False, True, True]]))
    [[0.5, 0.5]]
    """
    check_mask(logits, token_masks, mask_name="token_masks")
    if logits.dim() != 3 or logits.shape[2] != 2:
        raise ValueError(f"logits must have shape [B, T, 2], got {tuple(logits.shape)}")
    packed = packed_probs if logits.device.type == "cpu" else packed_probs_by_one_copy
    prob, offsets = packed(logits.detach(), token_masks)
    rewards = prob.numpy().tolist()  # takes less time than torch's
    return [rewards[start:end] for start, end in pairwise(offsets.tolist())]


def packed_probs(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of class 1 at each step, and where each row's steps begin.  [S], [B + 1]"""
    steps, offsets = gather_steps(logits, mask)
    return score_steps(steps, offsets).prob, offsets


def packed_probs_by_one_copy(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`packed_probs` on the host: one copy from the device tells scores and steps, as a score (also NaN) is never -1."""
    prob = torch.where(mask, score_masked(logits, mask).prob, -1.0).cpu()
    return gather_steps(prob, prob != -1.0)
