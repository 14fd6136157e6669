"""Labels for training a PRM: from Monte Carlo completions and from judges (Zhang et al. 2025, arXiv 2501.07301)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.checks import check_integers
from .checks import check_same_shape, checked_offsets
from .reference import first, layout

IGNORED = -100


class MonteCarloLabels(NamedTuple):
    """hard [S] int64: 1 for a step from which the answer was reached, else 0; soft [S] float32: how often it was.

    >>> ladderkern.prm.monte_carlo_labels(torch.tensor([[True, False]])).soft
    tensor([0.5000])
    """

    hard: Tensor
    soft: Tensor


def monte_carlo_labels(successes: Tensor, *, threshold: float = 0.0) -> MonteCarloLabels:
    """Labels of steps from completions that start after them.

    Args:
        successes: bool [S, K]: whether each of K completions of a step reaches the right answer.
        threshold: a step is right if more than this share of its completions succeed, in [0, 1).

    Returns:
        (hard, soft), see :class:`MonteCarloLabels`.

    Raises:
        TypeError: successes is not bool. ValueError: not two dimensions, no completions, a threshold out of range.

    Source: arXiv 2501.07301, section 3.1: K = 8, and any success makes a step right (threshold 0, the best of those tried).

    >>> hard, soft = ladderkern.prm.monte_carlo_labels(torch.tensor([[True, False], [False, False]]))
    >>> hard, soft
    (tensor([1, 0]), tensor([0.5000, 0.0000]))
    """
    if successes.dtype != torch.bool:
        raise TypeError(f"successes must be bool, got {successes.dtype}")
    if successes.dim() != 2 or successes.shape[1] == 0:
        raise ValueError(f"successes must have shape [S, K] with K of 1 or more, got {tuple(successes.shape)}")
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    K = successes.shape[1]
    count = successes.sum(dim=1)
    return MonteCarloLabels((count > threshold * K).long(), count.float() / K)


def first_error(labels: Tensor, offsets: Tensor) -> Tensor:
    """Index inside each response of its first step that is labelled wrong, -1 for none.  [R] int64

    Args:
        labels: [S], integers, floats or bool: a step is wrong if its label is 0; -100 marks a step that nobody judged.
        offsets: [R+1] integers: response r owns steps offsets[r] .. offsets[r+1] - 1.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> ladderkern.prm.first_error(torch.tensor([1, 0, 1, 1]), torch.tensor([0, 3, 4]))
    tensor([ 1, -1])
    """
    if labels.dim() != 1:
        raise ValueError(f"labels must have shape [S], got {tuple(labels.shape)}")
    offsets = checked_offsets(offsets, labels, "labels")
    S, R = labels.shape[0], offsets.shape[0] - 1
    row = first(layout(offsets, None, S).response, R, labels == 0)
    return torch.where(row < S, row - offsets[:-1], -1)


def drop_after_first_error(labels: Tensor, offsets: Tensor) -> Tensor:
    """``labels`` with -100 at every step after a response's first wrong one, as the paper trains: the rest has no meaning.

    Arguments and errors as for :func:`first_error`; bool labels become int64.  [S]

    >>> ladderkern.prm.drop_after_first_error(torch.tensor([1, 0, 1, 1]), torch.tensor([0, 3, 4]))
    tensor([   1,    0, -100,    1])
    """
    last_kept = first_error(labels, offsets)
    steps = layout(offsets.to(torch.int64), None, labels.shape[0])
    last_kept = F.pad(last_kept, (0, 1), value=-1)[steps.response]
    labels = labels.long() if labels.dtype == torch.bool else labels
    return labels.masked_fill((last_kept >= 0) & (steps.position > last_kept), IGNORED)


def consensus_filter(mc_first_error: Tensor, judge_first_error: Tensor) -> Tensor:
    """Which responses to keep for PRM training: those where Monte Carlo and the judge agree.

    Both arguments are first-error step indices, one per response, -1 for none.        [R] integers
    Returns a bool mask.                                                               [R]
    Raises TypeError for other than integers, ValueError for two shapes.
    Source: Zhang et al. 2025 (arXiv 2501.07301), consensus filtering; about 40 % survive there.

    >>> ladderkern.prm.consensus_filter(torch.tensor([-1, 2, 0]), torch.tensor([-1, 1, 0]))
    tensor([ True, False,  True])
    """
    check_integers(mc_first_error=mc_first_error, judge_first_error=judge_first_error)
    check_same_shape("judge_first_error", judge_first_error, "mc_first_error", mc_first_error)
    return mc_first_error == judge_first_error
