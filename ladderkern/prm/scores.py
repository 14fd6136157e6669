"""Step scores and every aggregate of a response, of packed, padded and given probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.checks import check_integers
from .gather import check_mask
from .ops import INDICES, RESPONSES, STEPS, score, weights_of


class StepScores(NamedTuple):
    """Scores of S steps and of R responses; float32 (float64 for float64 input), indices int64.

    Per step, [S] (of padded tokens [B, T], NaN where there is no step): margin = log(p / (1 - p)), prob = p, log_prob = log p.
    Per response, [R]: all the rest. min, max, last, mean, product and geometric_mean are of prob; ``*_margin`` of margin, at
    the same steps. argmin, argmax and first_error (the first wrong step) count inside the response, -1 for none; they go by
    margin, ties to the first. A response without steps has count 0, NaN, product 1, log_product 0.

    >>> logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 3.0]])  # 3 steps
    >>> ladderkern.prm.score_steps(logits, torch.tensor([0, 2, 3])).last_margin
    tensor([-1.,  3.])
    """

    margin: Tensor
    prob: Tensor
    log_prob: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count
    min: Tensor
    argmin: Tensor
    max: Tensor
    last: Tensor
    mean: Tensor
    product: Tensor
    log_product: Tensor
    geometric_mean: Tensor
    mean_margin: Tensor
    first_error: Tensor
    min_is_last: Tensor
    argmax: Tensor
    min_margin: Tensor
    max_margin: Tensor
    last_margin: Tensor


torch.serialization.add_safe_globals([StepScores])  # what torch.load(weights_only=True) may make


def score_steps(
    logits: Tensor,
    offsets: Tensor,
    positive: int = 1,
    threshold: float = 0.5,
    strict: bool = False,
    class_weights: Sequence[float] | Tensor | None = None,
) -> StepScores:
    """Score packed steps: the steps of all responses, one after another.

    The margin of a step, log(p / (1 - p)), still differs where p has rounded to 1 (float32: from 16.6; bfloat16: from 6.2), so
    rank by ``min_margin``, ``last_margin`` and ``log_product`` where ties matter.

    Args:
        logits: [S, C] at each step's position, any strides; float32, bfloat16, float16 or float64. C = 2 is the usual head;
            [S] or C = 1 is a scalar head, whose sigmoid is the probability.
        offsets: [R + 1] integers: response r owns steps offsets[r] .. offsets[r + 1] - 1 (cu_seqlens of steps).
        positive: the class that means "right": 1 for Qwen's heads, 0 for Math-Shepherd's columns; C = 1 has no choice.
        threshold: in [0, 1]; a step is wrong when prob < threshold, decided by its margin.
        strict: a step is wrong when prob <= threshold.
        class_weights: [C] in [0, 1], on the device of logits: p = sum_c w_c softmax_c, such as (0, 1, 1) for ReasonEval's
            negative, neutral and positive; then ``positive`` does not matter.

    Returns:
        :class:`StepScores`, computed in one pass; differentiable once, in logits. A minimum or maximum passes its gradient to
        the step at argmin or argmax alone; no gradient divides by a probability.

    Raises:
        TypeError, ValueError: naming the argument; values (offsets, NaN logits, weights) on CPU, on a device with
            LADDERKERN_CHECK=1. BackendUnavailable: see :func:`ladderkern.backend`.

    Source: Zhang et al. 2025 (arXiv 2501.07301), sections 2 and 4; first_error as Zheng et al. 2024 (ProcessBench, 2412.06559).

    >>> logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 3.0]])  # 3 steps
    >>> scores = ladderkern.prm.score_steps(logits, torch.tensor([0, 2, 3]))  # 2 responses
    >>> scores.min_margin, scores.first_error
    (tensor([-1.,  3.]), tensor([ 1, -1]))
    """
    scores = logits.unsqueeze(-1) if logits.dim() == 1 else logits
    return _score("logits", scores, offsets, None, class_weights, positive, threshold, strict)


def score_probs(prob: Tensor, offsets: Tensor, threshold: float = 0.5, strict: bool = False) -> StepScores:
    """:func:`score_steps` of probabilities, for models and files that give nothing else.

    Args:
        prob: [S], in [0, 1]. offsets, threshold, strict: as there.

    Minimum, maximum and first error go by the probability itself. A margin is infinite at 0 and 1, and ``mean_margin`` NaN in a
    response with both. Gradients are in prob; that of ``product`` is right also where steps are 0.

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> scores.min, scores.first_error
    (tensor([0.2000, 0.7000]), tensor([ 1, -1]))
    """
    if prob.dim() != 1:
        raise ValueError(f"prob must have shape [S], got {tuple(prob.shape)}")
    return _score("prob", prob.unsqueeze(-1), offsets, None, None, 1, threshold, strict, probabilities=True)


def score_masked(
    logits: Tensor,
    mask: Tensor,
    positive: int = 1,
    threshold: float = 0.5,
    strict: bool = False,
    class_weights: Sequence[float] | Tensor | None = None,
) -> StepScores:
    """Score padded tokens without ever synchronising the device; each row is a response.

    Args:
        logits: [B, T, C] or [B, T], of every token. mask: [B, T] bool, where the steps are read; padding on either side.
        positive, threshold, strict, class_weights: as for :func:`score_steps`, which also lists the errors.

    Returns:
        :class:`StepScores` whose per-step fields are [B, T], NaN off the mask. Logits off the mask may hold anything, and get
        gradient exactly 0. Indices count the row's steps, not its tokens.

    >>> scores = ladderkern.prm.score_masked(torch.zeros(1, 3, 2), torch.tensor([[False, True, True]]))
    >>> scores.count, scores.prob
    (tensor([2]), tensor([[   nan, 0.5000, 0.5000]]))
    """
    check_mask(logits, mask)
    B, T = mask.shape[0], mask.shape[1]
    offsets = torch.arange(B + 1, device=mask.device) * T
    scores = logits.reshape(B * T, logits.shape[2] if logits.dim() == 3 else 1)
    return _score("logits", scores, offsets, mask.reshape(-1), class_weights, positive, threshold, strict, shape=(B, T))


def _score(
    name: str,
    scores: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    class_weights: Sequence[float] | Tensor | None,
    positive: int,
    threshold: float,
    strict: bool,
    probabilities: bool = False,
    shape: tuple[int, ...] = (-1,),
) -> StepScores:
    check_integers(offsets=offsets)
    weights = None if class_weights is None else weights_of(class_weights, scores)
    steps, responses, indices, min_is_last = score(
        name,
        scores,
        offsets.to(torch.int64),
        mask,
        weights,
        positive=positive,
        threshold=threshold,
        strict=strict,
        probabilities=probabilities,
    )
    steps = steps if mask is None else steps.view(3, *shape)
    packed = (*steps.unbind(), *responses.unbind(), *indices.unbind(), min_is_last)
    return StepScores(*[packed[i] for i in _ORDER])


_ORDER = [(*STEPS, *RESPONSES, *INDICES, "min_is_last").index(field) for field in StepScores._fields]
