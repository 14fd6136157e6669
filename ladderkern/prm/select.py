"""Choosing among responses: Best-of-N, beams and voting, for all groups at once, without a loop and without a synchronisation.

``values`` of R responses are laid out group after group; ``group_sizes`` says how many responses each problem has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.checks import check_integers
from .checks import check_same_shape, check_sizes
from .reference import layout

# What ranks the responses under each strategy: (field for scores made from logits, field for scores made from
# probabilities). Margins do not saturate and products are compared as sums of logarithms, so that only equal responses tie.
# A probability that is given is exact itself, while neighbours may share a margin.
STRATEGIES: dict[str, tuple[str, str]] = {
    "product": ("log_product", "log_product"),
    "geometric_mean": ("log_product", "log_product"),  # divided by the count
    "min": ("min_margin", "min"),
    "max": ("max_margin", "max"),
    "last": ("last_margin", "last"),
    "mean": ("mean", "mean"),
    "mean_margin": ("mean_margin", "mean_margin"),
}


def best_of_n(values: Tensor, group_sizes: Tensor) -> Tensor:
    """Index, inside its group, of each group's response of the highest value.

    Args:
        values: [..., R], one value a response: margins or logarithms, which do not saturate (:func:`ranking`).
        group_sizes: [G] integers whose sum is R.

    Returns:
        [..., G] int64. Ties go to the first response, NaN ranks below everything (-inf too), an empty group gives -1.

    Raises:
        TypeError, ValueError: naming the argument; the values of group_sizes where they may be read.

    >>> ladderkern.prm.best_of_n(torch.tensor([0.1, 0.7, 0.4, 0.3]), torch.tensor([2, 2]))
    tensor([1, 0])
    """
    values, group, local = _grouped(values, group_sizes)
    G, R = group_sizes.shape[0], values.shape[-1]
    index = group.expand(values.shape)
    missing = values.isnan()
    values = values.masked_fill(missing, float("-inf"))
    room = (*values.shape[:-1], G + 1)
    highest = values.new_zeros(room).scatter_reduce(-1, index, values, "amax", include_self=False)
    # The first of the highest; R more for the others, among which the first is taken where all are NaN.
    place = torch.where((values == highest.gather(-1, index)) & ~missing, local, local + R)
    best = place.new_full(room, -1).scatter_reduce(-1, index, place, "amin", include_self=False)[..., :G]
    return torch.where(best >= R, best - R, best)


def top_k(values: Tensor, group_sizes: Tensor, k: int) -> Tensor:
    """Indices, inside their group, of each group's ``k`` best responses, best first: the beams to keep.

    Arguments, order of ties and NaN, and errors as for :func:`best_of_n`, whose result is column 0.

    Returns:
        [..., G, k] int64; -1 where a group has fewer than ``k`` responses.

    >>> ladderkern.prm.top_k(torch.tensor([0.1, 0.7, 0.4, 0.3]), torch.tensor([3, 1]), 2)
    tensor([[ 1,  2],
            [ 0, -1]])
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    values, group, local = _grouped(values, group_sizes)
    G = group_sizes.shape[0]
    missing = values.isnan()
    order = values.masked_fill(missing, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
    key = (2 * group + missing).gather(-1, order)  # by group, in it NaN last, and else as sorted
    order = order.gather(-1, key.sort(dim=-1, stable=True).indices)
    # Sorted by group, the responses stand where they did: rank i of a group takes the place of its i-th response.
    slot = group * (k + 1) + local.clamp(max=k)  # column k takes what is not kept
    kept = slot.new_full((*values.shape[:-1], (G + 1) * (k + 1)), -1).scatter(-1, slot.expand(order.shape), local[order])
    return kept.view(*values.shape[:-1], G + 1, k + 1)[..., :G, :k]


def weighted_majority(answers: Tensor, weights: Tensor | None, group_sizes: Tensor) -> Tensor:
    """Index, inside its group, of the first response that gives each group's answer of the highest total weight.

    Args:
        answers: [R] integers: equal numbers in a group are equal answers; a negative one is no answer and never wins over
            one.
        weights: [R], not negative (probabilities, products: not margins), or None: each response counts 1. NaN counts 0.
        group_sizes: [G] integers whose sum is R.

    Returns:
        [G] int64. Ties go to the answer that is given first; an empty group gives -1. Sums are float64.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: weighted majority voting, Li et al. 2023 (arXiv 2206.02336), as in search-and-learn's ``pred_weighted``.

    >>> ladderkern.prm.weighted_majority(torch.tensor([7, 5, 5]), torch.tensor([0.5, 0.3, 0.4]), torch.tensor([3]))
    tensor([1])
    """
    check_integers(answers=answers)
    if answers.dim() != 1:
        raise ValueError(f"answers must have shape [R], got {tuple(answers.shape)}")
    if weights is None:
        weights = torch.ones_like(answers, dtype=torch.float64)
    else:
        check_same_shape("weights", weights, "answers", answers)
    weights, group, _ = _grouped(weights, group_sizes, "weights")
    order = answers.sort(stable=True).indices
    order = order[group[order].sort(stable=True).indices]
    sorted_group, sorted_answers = group[order], answers[order]
    fresh = torch.zeros_like(order)  # 1 where the next answer, or the next group, begins
    fresh[1:] = (sorted_group[1:] != sorted_group[:-1]) | (sorted_answers[1:] != sorted_answers[:-1])
    answer_of = fresh.cumsum(0)
    votes = torch.where(weights.isnan(), 0.0, weights.double())[order]
    totals = torch.zeros_like(votes).scatter_add(0, answer_of, votes)
    total = torch.empty_like(votes).scatter(0, order, totals[answer_of])
    return best_of_n(total.masked_fill(answers < 0, float("nan")), group_sizes)


def ranking(scores: Any, *, probabilities: bool = False) -> Tensor:
    """What :func:`best_of_n` compares under each of ``STRATEGIES``: margins and logarithms, which make no false ties.  [7, R]

    Args:
        scores: a ``StepScores``, of all steps or of a ``StepState``.
        probabilities: whether they come from ``score_probs``: then min, max and last compare the given probabilities.

    An empty response ranks below all (NaN), under the product too. ``mean`` is a mean of probabilities, which saturate: there
    responses may tie whose steps are all within rounding of 1.

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> ladderkern.prm.ranking(scores, probabilities=True).shape  # strategies, responses
    torch.Size([7, 2])
    """
    rows = [getattr(scores, fields[probabilities]) for fields in STRATEGIES.values()]
    rows[list(STRATEGIES).index("geometric_mean")] = scores.log_product / scores.count
    return torch.stack(rows).detach().masked_fill(scores.count == 0, float("nan"))


def best_of_n_by_strategy(scores: Any, group_sizes: Tensor, *, probabilities: bool = False) -> dict[str, Tensor]:
    """:func:`best_of_n` under every strategy, in one pass over :func:`ranking`: name -> [G] int64.

    >>> scores = ladderkern.prm.score_probs(torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0, 2, 4]))
    >>> ladderkern.prm.best_of_n_by_strategy(scores, torch.tensor([2]), probabilities=True)["min"]
    tensor([1])
    """
    best = best_of_n(ranking(scores, probabilities=probabilities), group_sizes)
    return dict(zip(STRATEGIES, best.unbind(), strict=True))


def _grouped(values: Tensor, group_sizes: Tensor, name: str = "values") -> tuple[Tensor, Tensor, Tensor]:
    """(values as floats, group of each response, its index in there)."""
    if values.dtype.is_complex:
        raise TypeError(f"{name} must be real, got {values.dtype}")
    if values.dim() == 0:
        raise ValueError(f"{name} must have shape [..., R], got a scalar")
    check_sizes(group_sizes, values, name)
    group, local, _ = layout(offsets_of(group_sizes), None, values.shape[-1])
    return values.detach() if values.dtype.is_floating_point else values.double(), group, local


def offsets_of(sizes: Tensor) -> Tensor:
    """Where each group (of responses, of steps) of these sizes [G] starts, and the end of the last.  [G + 1] int64"""
    return F.pad(sizes.to(torch.int64).cumsum(0), (1, 0))
