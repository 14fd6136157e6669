"""What step scores are compared with: the model card's loop, vectorised eager code, torch.compile of it, plain Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderkern import prm
from ladderkern.prm import StepScores, published

Score = Callable[[Tensor, Tensor], StepScores]  # of logits [S, 2] and offsets [R + 1]
Builder = Callable[[], "Peer"]


class Peer:
    """A function without arguments; its last result is kept for comparisons and given back before the next step."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None

    def prepare(self) -> None:
        """Before each step and not timed: gives the last result's memory back."""
        self.result = None

    def step(self) -> None:
        """What is timed: one call."""
        self.result = self.function()


class Repeated(Peer):
    """As many calls a step as make short ones long enough to time. Each result is given back at once.

    Held results would cut the freed memory of larger ones in pieces, and those would have to fault new pages in.
    """

    def __init__(self, function: Callable[[], Any], calls: int) -> None:
        super().__init__(function)
        self.calls = calls

    def step(self) -> None:
        """What is timed: all calls."""
        for _ in range(self.calls):
            self.function()


# --------------------------------------------------------------------------------------------------------------- padded tokens


class Tokens(NamedTuple):
    """Padded responses of equally many steps, each of ``width`` tokens whose last one is the separator."""

    responses: int
    steps: int
    width: int
    dtype: torch.dtype

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits of every token, with gaps as real ones (few beyond 8), and where the steps are.  [B, T, 2], [B, T]"""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn((self.responses, self.steps * self.width, 2), generator=generator) * 2
        mask = torch.zeros(logits.shape[:2], dtype=torch.bool)
        mask[:, self.width - 1 :: self.width] = True
        return logits.to(self.dtype), mask


def ours_padded(tokens: Tokens) -> Builder:
    """``gather_steps`` and ``score_steps``: every aggregate of every response, as tensors."""

    def build() -> Peer:
        logits, mask = tokens.tensors()
        return Peer(lambda: prm.score_steps(*prm.gather_steps(logits, mask)))

    return build


def our_lists(tokens: Tokens) -> Builder:
    """``make_step_rewards``: probabilities alone, as the card's nested lists."""

    def build() -> Peer:
        logits, mask = tokens.tensors()
        return Peer(lambda: prm.make_step_rewards(logits, mask))

    return build


def card_lists(tokens: Tokens) -> Builder:
    """What the model card does, in our own words: the softmax of all tokens, 0 off the mask; row by row what is not 0."""

    def build() -> Peer:
        logits, mask = tokens.tensors()
        return Peer(lambda: _card(logits, mask))

    return build


def _card(logits: Tensor, mask: Tensor) -> list[list[float]]:
    masked = torch.softmax(logits, dim=-1) * mask.unsqueeze(-1)
    return [row[row != 0].reshape(-1, 2)[:, 1].tolist() for row in masked]


# ---------------------------------------------------------------------------------------------------------------- packed steps


@functools.cache
def processbench_lengths() -> Tensor:
    """Steps of each of ProcessBench's 3,400 responses, 25,697 in all: gsm8k's and math's are the true ones.

    The counts of the other two subsets are math's, twice, stretched to their 17,110 steps: as ragged as the true ones. In a
    random order, so that the first of them are like all.  [R]
    """
    gsm8k, math = (published.processbench(subset).steps.long() for subset in ("gsm8k", "math"))
    harder = torch.cat([math, math]).cumsum(0)
    ends = (harder * (17110 / int(harder[-1]))).round().long()
    lengths = torch.cat([gsm8k, math, ends.diff(prepend=ends.new_zeros(1))])
    return lengths[torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))]


class Steps(NamedTuple):
    """Packed steps of so many responses, which are as long as ProcessBench's, over and over."""

    responses: int

    def offsets(self) -> Tensor:
        """Where each response starts, and the end of the last.  [R + 1]"""
        lengths = processbench_lengths()
        lengths = lengths.repeat(-(-self.responses // len(lengths)))[: self.responses]
        return F.pad(lengths.cumsum(0), (1, 0))

    def logits(self) -> Tensor:
        """Normal logits, the same numbers at each call.  [S, 2]"""
        return torch.randn((int(self.offsets()[-1]), 2), generator=torch.Generator().manual_seed(0)) * 2

    def least_bytes(self) -> int:
        """What a forward must move: two logits in, three scores out; an offset in, 11 floats, 4 indices and a bool out."""
        return (2 + 3) * 4 * int(self.offsets()[-1]) + (8 + 11 * 4 + 4 * 8 + 1) * self.responses


def forward(score: Score, problem: Steps) -> Builder:
    """A forward; the result is the scores."""

    def build() -> Peer:
        logits, offsets = problem.logits(), problem.offsets()
        return Peer(lambda: score(logits, offsets))

    return build


def forward_and_backward(score: Score, problem: Steps) -> Builder:
    """A forward and its backward, each step's and each response's every score having a gradient; the result is the gradient."""

    def build() -> Peer:
        logits, offsets = problem.logits().requires_grad_(), problem.offsets()
        with torch.no_grad():
            ones = [torch.ones_like(values) for values in _floats(prm.score_steps(logits, offsets))]

        def both() -> Tensor:
            return torch.autograd.grad(_floats(score(logits, offsets)), logits, ones)[0]

        return Peer(both)

    return build


def repeated(score: Score, problem: Steps, calls: int) -> Builder:
    """``calls`` forwards, one after the other."""

    def build() -> Repeated:
        logits, offsets = problem.logits(), problem.offsets()
        return Repeated(lambda: score(logits, offsets), calls)

    return build


def _floats(scores: StepScores) -> list[Tensor]:
    return [values for values in scores if values.is_floating_point()]


def vectorised(logits: Tensor, offsets: Tensor) -> StepScores:
    """What a careful user writes with scatters, in float32. Every response has steps (ours asks for none)."""
    R, S = offsets.shape[0] - 1, logits.shape[0]
    response = torch.repeat_interleave(torch.arange(R), offsets.diff(), output_size=S)
    step = torch.arange(S)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(R).scatter_add(0, response, values)

    def greatest(values: Tensor) -> Tensor:
        return values.new_full((R,), float("-inf")).scatter_reduce(0, response, values, "amax")[response]

    def first(which: Tensor) -> Tensor:
        return step.new_full((R,), S).scatter_reduce(0, response, torch.where(which, step, S), "amin")

    return _scores(logits, offsets, total, greatest, first)


def segmented(logits: Tensor, offsets: Tensor) -> StepScores:
    """The same with ``torch.segment_reduce``, which takes floats alone: float32 counts up to 2^24 steps exactly."""
    S, counts = logits.shape[0], offsets.diff()
    step = torch.arange(S, dtype=torch.float32)

    def reduced(values: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(values, how, offsets=offsets, unsafe=True)

    def greatest(values: Tensor) -> Tensor:
        return torch.repeat_interleave(reduced(values, "max"), counts, output_size=S)

    def first(which: Tensor) -> Tensor:
        return reduced(torch.where(which, step, float(S)), "min").long()

    return _scores(logits, offsets, lambda values: reduced(values, "sum"), greatest, first)


def _scores(
    logits: Tensor,
    offsets: Tensor,
    total: Callable[[Tensor], Tensor],
    greatest: Callable[[Tensor], Tensor],
    first: Callable[[Tensor], Tensor],
) -> StepScores:
    """All that ours returns, of three reductions: a response's sum [R], its greatest for each step [S], its first row [R]."""
    start, last, count, S = offsets[:-1], offsets[1:] - 1, offsets.diff(), logits.shape[0]
    margin = logits[:, 1] - logits[:, 0]
    prob, log_prob = margin.sigmoid(), F.logsigmoid(margin)
    log_product = total(log_prob)
    with torch.no_grad():
        least, most = first(margin == -greatest(-margin)), first(margin == greatest(margin))
        wrong = first(margin < 0)
    return StepScores(
        margin=margin,
        prob=prob,
        log_prob=log_prob,
        count=count,
        min=prob[least],
        argmin=least - start,
        max=prob[most],
        last=prob[last],
        mean=total(prob) / count,
        product=log_product.exp(),
        log_product=log_product,
        geometric_mean=(log_product / count).exp(),
        mean_margin=total(margin) / count,
        first_error=torch.where(wrong < S, wrong - start, -1),
        min_is_last=least == last,
        argmax=most - start,
        min_margin=margin[least],
        max_margin=margin[most],
        last_margin=margin[last],
    )


def compiled(score: Score) -> Score:
    """The same under ``torch.compile``."""
    return torch.compile(score, fullgraph=True, dynamic=False)


# -------------------------------------------------------------------------------------------------------- choosing, thresholds


class Groups(NamedTuple):
    """Scored responses, so many a problem."""

    problems: int
    size: int

    def values(self) -> tuple[Tensor, Tensor]:
        """(least margin of each response, how many responses each problem has).  [R], [G]"""
        problem = Steps(self.problems * self.size)
        return prm.score_steps(problem.logits(), problem.offsets()).min_margin, torch.full((self.problems,), self.size)


def our_choice(groups: Groups) -> Builder:
    """``best_of_n``."""

    def build() -> Peer:
        values, sizes = groups.values()
        return Peer(lambda: prm.best_of_n(values, sizes))

    return build


def chosen_in_a_loop(groups: Groups) -> Builder:
    """The same group by group in Python, over lists."""

    def build() -> Peer:
        values, sizes = groups.values()

        def choose() -> list[int]:
            rows, ends = values.tolist(), [0, *sizes.cumsum(0).tolist()]
            return [max(range(start, end), key=rows.__getitem__) - start for start, end in pairwise(ends)]

        return Peer(choose)

    return build


def our_sweep(problem: Steps, thresholds: list[float]) -> Builder:
    """``first_error_sweep``."""

    def build() -> Peer:
        offsets = problem.offsets()
        scores = prm.score_steps(problem.logits(), offsets)
        return Peer(lambda: prm.first_error_sweep(scores, offsets, thresholds))

    return build


def swept_in_a_loop(problem: Steps, thresholds: list[float]) -> Builder:
    """The same threshold by threshold and response by response in Python, over lists, each up to its first wrong step."""

    def build() -> Peer:
        offsets = problem.offsets()
        prob = prm.score_steps(problem.logits(), offsets).prob

        def sweep() -> list[list[int]]:
            rows = prob.tolist()
            responses = [rows[start:end] for start, end in pairwise(offsets.tolist())]
            return [[_first_below(row, threshold) for row in responses] for threshold in thresholds]

        return Peer(sweep)

    return build


def _first_below(row: list[float], threshold: float) -> int:
    return next((i for i, prob in enumerate(row) if prob < threshold), -1)
