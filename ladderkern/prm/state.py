"""Scores of responses that grow: a beam search appends a step in O(1) instead of scoring the whole text again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..runtime.dtypes import wide
from .reference import exp_of_sum, layout, total
from .scores import StepScores, score_probs, score_steps


@dataclass(frozen=True)
class StepState:
    """What R responses are known by without their steps: enough for every aggregate, and to go on.

    A state is never changed: :meth:`append`, :meth:`merge` and :meth:`select` return another one. Nothing is differentiable,
    nothing synchronises. Make one with :meth:`empty` or :meth:`of_steps`. ``torch.save`` and ``torch.load`` keep it.

    >>> state = ladderkern.prm.StepState.empty(2)
    >>> state = state.append(torch.tensor([[0.0, 2.0], [0.0, -1.0]]))  # the next step of both responses
    >>> state.margin[2]  # of the last step
    tensor([ 2., -1.])
    """

    indices: Tensor  # count, argmin, argmax, first_error                                                    [4, R] int64
    prob: Tensor  # at the first minimum, the first maximum and the last step                                [3, R]
    margin: Tensor  # there                                                                                  [3, R]
    sums: Tensor  # of margin, prob and log_prob, one step after another                                     [3, R] float64
    probabilities: bool = False  # whether append takes probabilities, not logits
    options: dict[str, Any] = field(default_factory=dict)  # of score_steps or score_probs

    @staticmethod
    def empty(
        num_responses: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        probabilities: bool = False,
        **options: Any,
    ) -> StepState:
        """The state of responses without steps.

        Args:
            num_responses: R.
            dtype: of the scores to come: float64, or what is computed in float32.
            probabilities: whether these are probabilities (``score_probs``), not logits (``score_steps``).
            **options: threshold, strict; of logits also positive and class_weights: those of ``score_steps``.
        """
        indices = torch.full((4, num_responses), -1, dtype=torch.int64, device=device)
        indices[0] = 0
        unknown = torch.full((3, num_responses), float("nan"), dtype=wide(dtype), device=device)
        return StepState(indices, unknown, unknown, torch.zeros_like(unknown, dtype=torch.float64), probabilities, options)

    @staticmethod
    def of_steps(scores: Tensor, offsets: Tensor, *, probabilities: bool = False, **options: Any) -> StepState:
        """The state of responses whose steps so far are packed: logits [S, C] or [S] (probabilities [S]), offsets [R+1].

        Raises TypeError and ValueError as ``score_steps`` does.
        """
        with torch.no_grad():
            s = (score_probs if probabilities else score_steps)(scores, offsets, **options)
            R = s.count.shape[0]
            response = layout(offsets.to(torch.int64), None, scores.shape[0]).response
            return StepState(
                torch.stack([s.count, s.argmin, s.argmax, s.first_error]),
                torch.stack([s.min, s.max, s.last]),
                torch.stack([s.min_margin, s.max_margin, s.last_margin]),
                torch.stack([total(response, R, values) for values in (s.margin, s.prob, s.log_prob)]),
                probabilities,
                options,
            )

    def append(self, scores: Tensor, where: Tensor | None = None) -> StepState:
        """With one more step for each response: logits [R, C] or [R], probabilities [R].

        On CPU the result is that of scoring all steps at once, bit for bit; on a device, where the order of sums is another,
        within their roundings.

        Args:
            where: [R] bool, which responses grow; what the others' scores hold does not matter. None: all.

        Raises:
            TypeError, ValueError: as ``score_steps``; other than R rows.
        """
        R = self.indices.shape[1]
        if scores.dim() == 0 or scores.shape[0] != R:
            raise ValueError(f"scores must have a row for each of {R} responses, got shape {tuple(scores.shape)}")
        if where is not None:
            if where.dtype != torch.bool or where.shape != (R,):
                raise ValueError(f"where must be bool of shape ({R},), got {where.dtype} {tuple(where.shape)}")
            scores = torch.where(where.view(-1, *(1,) * (scores.dim() - 1)), scores, 0.5)
        offsets = torch.arange(R + 1, device=scores.device)
        step = StepState.of_steps(scores, offsets, probabilities=self.probabilities, **self.options)
        merged = self.merge(step)
        return merged if where is None else merged._together(self, lambda grown, same: torch.where(where, grown, same))

    def merge(self, other: StepState) -> StepState:
        """With the steps of ``other`` after one's own, response by response: sums are added, in float64.

        Raises:
            ValueError: another number of responses, or a state with other options.
        """
        if other.indices.shape != self.indices.shape:
            raise ValueError(f"other must have {self.indices.shape[1]} responses, got {other.indices.shape[1]}")
        if other.probabilities != self.probabilities or not _same(other.options, self.options):
            raise ValueError(f"other must have the options {self.options}, got {other.options}")
        count, argmin, argmax, first_error = self.indices
        count2, argmin2, argmax2, first_error2 = other.indices
        key, key2 = (s.prob if s.probabilities else s.margin for s in (self, other))
        grows = count2 > 0
        # An earlier NaN stays, as the first of those that win; the first of equals stays.
        lower = grows & ((count == 0) | (key2[0] < key[0]) | (key2[0].isnan() & ~key[0].isnan()))
        higher = grows & ((count == 0) | (key2[1] > key[1]) | (key2[1].isnan() & ~key[1].isnan()))
        later_error = torch.where(first_error2 >= 0, first_error2 + count, -1)
        indices = (
            count + count2,
            torch.where(lower, argmin2 + count, argmin),
            torch.where(higher, argmax2 + count, argmax),
            torch.where(first_error >= 0, first_error, later_error),
        )
        taken = torch.stack([lower, higher, grows])
        return replace(
            self,
            indices=torch.stack(indices),
            prob=torch.where(taken, other.prob, self.prob),
            margin=torch.where(taken, other.margin, self.margin),
            sums=self.sums + other.sums,
        )

    def select(self, rows: Tensor) -> StepState:
        """The responses ``rows`` [R'] (integers, in any order, repeats allowed), such as the beams that :func:`top_k` keeps."""
        return self._together(self, lambda tensor, _: tensor.index_select(1, rows))

    def scores(self) -> StepScores:
        """Every aggregate, as ``score_steps`` gives it; its per-step fields are empty: the steps are not kept."""
        count, argmin, argmax, first_error = self.indices
        mean_margin, mean, log_mean = (self.sums / count).unbind()
        log_product = self.sums[2]
        aggregates = torch.stack([mean, exp_of_sum(log_product), log_product, exp_of_sum(log_mean), mean_margin])
        mean, product, log_product, geometric_mean, mean_margin = aggregates.to(self.prob.dtype).unbind()
        none = self.prob.new_empty(0)
        return StepScores(
            margin=none,
            prob=none,
            log_prob=none,
            count=count,
            min=self.prob[0],
            argmin=argmin,
            max=self.prob[1],
            last=self.prob[2],
            mean=mean,
            product=product,
            log_product=log_product,
            geometric_mean=geometric_mean,
            mean_margin=mean_margin,
            first_error=first_error,
            min_is_last=(count > 0) & (argmin == count - 1),
            argmax=argmax,
            min_margin=self.margin[0],
            max_margin=self.margin[1],
            last_margin=self.margin[2],
        )

    def _together(self, other: StepState, combine: Callable[[Tensor, Tensor], Tensor]) -> StepState:
        return replace(
            self,
            indices=combine(self.indices, other.indices),
            prob=combine(self.prob, other.prob),
            margin=combine(self.margin, other.margin),
            sums=combine(self.sums, other.sums),
        )


torch.serialization.add_safe_globals([StepState])  # what torch.load(weights_only=True) may make


def _same(options: dict[str, Any], others: dict[str, Any]) -> bool:
    """Whether the options are equal; of class weights in a tensor, whether they are the same tensor: nothing is read."""
    if options.keys() != others.keys():
        return False
    pairs = ((options[name], others[name]) for name in options)
    return all(a is b or (not (isinstance(a, Tensor) or isinstance(b, Tensor)) and a == b) for a, b in pairs)
