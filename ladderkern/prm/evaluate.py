"""How good a PRM is: ProcessBench, its thresholds, Best-of-N under every strategy, and where the least score falls.

Nothing here loops over responses or reads a device's values: results are tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.checks import check_integers, values_readable
from .checks import check_same_shape, checked_offsets
from .reference import layout, logit
from .select import best_of_n, offsets_of, ranking


class ProcessBench(NamedTuple):
    """Percentages, float64: exact matches among the cases with and without an error, and their harmonic mean.

    >>> ladderkern.prm.process_bench(torch.tensor([2, -1]), torch.tensor([2, -1])).f1.item()
    100.0
    """

    error_acc: Tensor
    correct_acc: Tensor
    f1: Tensor


class ProcessBenchSubsets(NamedTuple):
    """ProcessBench of each subset (fields [..., M]), and the benchmark's average: the plain mean of their F1 [...].

    >>> perfect = torch.tensor([2, -1])
    >>> ladderkern.prm.process_bench_subsets(perfect, perfect, torch.tensor([0, 0]), 1).subsets.f1
    tensor([100.], dtype=torch.float64)
    """

    subsets: ProcessBench
    mean_f1: Tensor


def process_bench(predicted: Tensor, label: Tensor) -> ProcessBench:
    """The scores of ProcessBench (Zheng et al. 2024, arXiv 2412.06559).

    Args:
        predicted: [..., N] integers: index of the first step judged wrong, -1 for none (``StepScores.first_error``). Leading
            dimensions are thresholds (:func:`first_error_sweep`) or models.
        label: [N] integers: index of the first wrong step, -1 for none.

    Returns:
        ``.error_acc`` where label != -1, ``.correct_acc`` where label == -1, ``.f1`` = 2ab / (a + b); each [...], percent.
        A class without cases has accuracy NaN and f1 0.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> ladderkern.prm.process_bench(torch.tensor([2, -1, 0]), torch.tensor([2, -1, 1])).error_acc.item()
    50.0
    """
    hit, error = _hits(predicted, label)
    return _percentages((hit & error).sum(-1), error.sum(), (hit & ~error).sum(-1), (~error).sum())


def process_bench_subsets(predicted: Tensor, label: Tensor, subset: Tensor, num_subsets: int) -> ProcessBenchSubsets:
    """:func:`process_bench` of each subset at once, and the plain mean of the F1 scores, which is the benchmark's average.

    Args:
        predicted, label: as for :func:`process_bench`.
        subset: [N] integers in 0 .. num_subsets - 1.
        num_subsets: M.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> predicted, label, subset = torch.tensor([2, -1, 0, -1]), torch.tensor([2, -1, 1, -1]), torch.tensor([0, 0, 1, 1])
    >>> ladderkern.prm.process_bench_subsets(predicted, label, subset, 2).mean_f1.item()
    50.0
    """
    hit, error = _hits(predicted, label)
    check_integers(subset=subset)
    check_same_shape("subset", subset, "label", label)
    if num_subsets < 1:
        raise ValueError(f"num_subsets must be 1 or more, got {num_subsets}")
    if values_readable(subset) and ((subset < 0) | (subset >= num_subsets)).any():
        raise ValueError(f"subset must be in 0..{num_subsets - 1}, got {subset.min().item()} to {subset.max().item()}")

    def count(which: Tensor) -> Tensor:
        zeros = torch.zeros((*which.shape[:-1], num_subsets), dtype=torch.int64, device=which.device)
        return zeros.index_add(-1, subset.to(torch.int64), which.long())

    scores = _percentages(count(hit & error), count(error), count(hit & ~error), count(~error))
    return ProcessBenchSubsets(scores, scores.f1.mean(-1))


def first_error_sweep(
    scores: Any, offsets: Tensor, thresholds: Sequence[float], *, strict: bool = False, probabilities: bool = False
) -> Tensor:
    """``first_error`` of every response under K thresholds, in one pass over the steps: time O(S log K + R K).  [K, R] int64

    Args:
        scores: ``StepScores`` of packed steps.
        offsets: [R+1], as they were scored.
        thresholds: K numbers in [0, 1], in any order.
        strict: as in ``score_steps``: False, a step is wrong when prob < threshold; True, when prob <= threshold.
        probabilities: whether the scores come from ``score_probs``.

    A step that is NaN is wrong under every threshold. ``process_bench`` takes the result as it is.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> ladderkern.prm.first_error_sweep(scores, torch.tensor([0, 2, 4]), [0.1, 0.5], probabilities=True)
    tensor([[-1, -1],
            [ 1, -1]])
    """
    key = (scores.prob if probabilities else scores.margin).detach()
    offsets = checked_offsets(offsets, key, "scores")
    if not all(0.0 <= t <= 1.0 for t in thresholds):
        raise ValueError(f"thresholds must be in [0, 1], got {list(thresholds)}")
    bounds = [t if probabilities else logit(t) for t in thresholds]
    cuts, order = torch.tensor(bounds, dtype=key.dtype).to(key.device).sort()
    # Sorted, the cuts above a step are those from one place on: the step is wrong under these.
    place = torch.searchsorted(cuts, key, right=not strict).masked_fill(key.isnan(), 0)
    S, R, K = key.shape[0], offsets.shape[0] - 1, cuts.shape[0]
    slot = layout(offsets, None, S).response * (K + 1) + place
    step = torch.arange(S, device=key.device)
    first = step.new_full(((R + 1) * (K + 1),), S).scatter_reduce(0, slot, step, "amin")
    first = first.view(R + 1, K + 1)[:R, :K].cummin(dim=1).values.T  # [K, R]
    return torch.empty_like(first).index_copy(0, order, torch.where(first < S, first - offsets[:-1], -1))


def min_is_last_share(scores: Any) -> Tensor:
    """Share, in [0, 1], of the responses with steps whose first least step is their last; NaN if no response has steps.

    The "process to outcome shift" of arXiv 2501.07301, section 4.3: a PRM whose minimum is mostly the last step judges
    answers, not steps (published, over Best-of-8 responses: 9 to 55 %).  0-dim float64

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> ladderkern.prm.min_is_last_share(scores).item()
    1.0
    """
    return scores.min_is_last.sum().double() / (scores.count > 0).sum()


class BestOfN(NamedTuple):
    """Numbers of groups, int64, one for each of ``STRATEGIES``, in its order.  [7]

    strict: a right response is ranked above every wrong one. ties: above or equal. picked: the one that ``best_of_n`` picks is
    right (ties by position: between the two).

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> ladderkern.prm.best_of_n_table(scores, torch.tensor([2]), torch.tensor([False, True]), probabilities=True).strict
    tensor([1, 1, 1, 0, 1, 1, 1])
    """

    strict: Tensor
    ties: Tensor
    picked: Tensor


def best_of_n_table(scores: Any, group_sizes: Tensor, correct: Tensor, *, probabilities: bool = False) -> BestOfN:
    """In how many groups each strategy puts a right response first.

    Args:
        scores: ``StepScores`` of R responses, group after group.
        group_sizes: [G] integers whose sum is R.
        correct: bool [R]: whether the response's final answer is right.
        probabilities: whether the scores come from ``score_probs``.

    A group without a right response counts nowhere; one without a wrong response counts everywhere. NaN ranks below all.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: ``strict`` is the metric of RewardMATH (Kim et al. 2024, arXiv 2410.01729), one right response against nine.

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> table = ladderkern.prm.best_of_n_table(scores, torch.tensor([2]), torch.tensor([False, True]), probabilities=True)
    >>> dict(zip(ladderkern.prm.STRATEGIES, table.picked.tolist(), strict=True))["min"]
    1
    """
    if correct.dtype != torch.bool:
        raise TypeError(f"correct must be bool, got {correct.dtype}")
    check_same_shape("correct", correct, "scores.count", scores.count)
    values = ranking(scores, probabilities=probabilities)
    starts = offsets_of(group_sizes)[:-1]

    def best(which: Tensor) -> tuple[Tensor, Tensor]:
        """(the highest value among these responses, whether the group has one that is not NaN); the rest counts as NaN."""
        among = values.masked_fill(~which, float("nan"))
        value = _take(among, starts + best_of_n(among, group_sizes).clamp(min=0))
        return value, ~value.isnan()

    right, has_right = best(correct)
    wrong, has_wrong = best(~correct)
    chosen = best_of_n(values, group_sizes)
    picked = _take(correct.expand(values.shape), starts + chosen.clamp(min=0)) & (chosen >= 0)
    strict = has_right & ((right > wrong) | ~has_wrong)
    return BestOfN(strict.sum(-1), (has_right & ((right >= wrong) | ~has_wrong)).sum(-1), picked.sum(-1))


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[i, index[i, j]]; nothing where there are no columns (then every group is empty).  [A, G]"""
    if rows.shape[-1] == 0:
        return rows.new_zeros(index.shape)
    return rows.gather(-1, index.clamp(max=rows.shape[-1] - 1))


def _hits(predicted: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    check_integers(predicted=predicted, label=label)
    if label.dim() != 1:
        raise ValueError(f"label must have shape [N], got {tuple(label.shape)}")
    if predicted.dim() == 0 or predicted.shape[-1] != label.shape[0]:
        raise ValueError(f"predicted must have shape [..., {label.shape[0]}], as label, got {tuple(predicted.shape)}")
    for name, indices in (("predicted", predicted), ("label", label)):
        if values_readable(indices) and (indices < -1).any():
            raise ValueError(f"{name} must hold step indices, or -1 for none, got {indices.min().item()}")
    return predicted == label, label != -1


def _percentages(error_hits: Tensor, errors: Tensor, correct_hits: Tensor, corrects: Tensor) -> ProcessBench:
    a = 100.0 * error_hits.double() / errors
    c = 100.0 * correct_hits.double() / corrects
    product = 2.0 * a * c
    return ProcessBench(a, c, torch.where(product > 0, product / (a + c), 0.0))
