"""Step scores of process reward models in plain PyTorch: the law that every backend must match.

Zhang et al. 2025, "The Lessons of Developing Process Reward Models in Mathematical Reasoning" (arXiv 2501.07301), section 4:
a response is scored by the product, the minimum or the last of its steps' probabilities of being right. With z the margin
(log-odds) of a step, in at least float32,

    p = sigmoid(z),   log p = -softplus(-z),   product = exp(sum log p),   geometric mean = exp(mean log p),

and minimum, maximum and first error go by z, which still tells steps apart where p has rounded to 1. No gradient divides by a
probability: d log p / dz = 1 - p, d product / dz = product (1 - p). Nothing here reads a device value on the host, and nothing
has a shape that depends on one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.dtypes import wide

NEUTRAL = 0.5  # what stands in rows that are no steps: a logit and a probability that no formula minds


def logit(probability: float) -> float:
    """log(p / (1 - p)) in double precision, -inf and inf at 0 and 1."""
    if probability in (0.0, 1.0):
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)


class Layout(NamedTuple):
    """Which row of the scores is which step of which response."""

    response: Tensor  # of each row; R where the row is no step                                                   [S] int64
    position: Tensor  # of the step in its response, counting true steps alone; -1 where the row is no step       [S] int64
    length: Tensor  # steps of each response                                                                      [R] int64


def layout(offsets: Tensor, mask: Tensor | None, rows: int) -> Layout:
    """The layout of ``rows`` rows: response r owns those from offsets[r] to offsets[r + 1] that ``mask`` says are steps."""
    row = torch.arange(rows, device=offsets.device)
    response = torch.searchsorted(offsets[1:].contiguous(), row, right=True)
    steps = torch.ones_like(row) if mask is None else mask.to(torch.int64)
    before = F.pad(steps.cumsum(0), (1, 0))  # steps in rows 0 .. i - 1
    bounds = before[offsets.clamp(0, rows)]
    position = before[:-1] - bounds[response]
    if mask is not None:
        response = torch.where(mask, response, offsets.shape[0] - 1)
        position = torch.where(mask, position, -1)
    return Layout(response, position, bounds.diff())


def read(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores in wide precision; neutral in rows that are no steps, so that what those hold reaches no result.  [S, C]"""
    x = scores.to(wide(scores.dtype))
    return x if mask is None else torch.where(mask[:, None], x, NEUTRAL)


def sides(x: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of right, x + log w, and of wrong, x + log(1 - w); a class without weight has no part in it.  2 x [S, C]"""
    weights = class_weights.log(), torch.log1p(-class_weights)
    right, wrong = (torch.where(weight == -math.inf, -math.inf, x + weight) for weight in weights)
    return right, wrong


def others(x: Tensor, positive: int) -> Tensor:
    """All columns but one.  [S, C - 1]"""
    return torch.cat([x[:, :positive], x[:, positive + 1 :]], dim=1)


def log_odds(x: Tensor, class_weights: Tensor | None, positive: int) -> Tensor:
    """The margin z of logits [S, C]: log of p / (1 - p) with p = sum_c w_c softmax_c, w one-hot at ``positive`` by default.

    One column is the margin itself; of two it is their difference, with no further rounding.  [S]
    """
    if class_weights is not None:
        right, wrong = sides(x, class_weights)
        return torch.logsumexp(right, dim=1) - torch.logsumexp(wrong, dim=1)
    if x.shape[1] == 1:
        return x[:, 0]
    if x.shape[1] == 2:
        return x[:, positive] - x[:, 1 - positive]
    return x[:, positive] - torch.logsumexp(others(x, positive), dim=1)


def log_odds_slopes(x: Tensor, class_weights: Tensor | None, positive: int) -> Tensor:
    """dz / dx of :func:`log_odds`; a side without any class adds 0.  [S, C]"""
    if class_weights is not None:
        right, wrong = sides(x, class_weights)
        return _softmax(right) - _softmax(wrong)
    slopes = torch.ones_like(x)
    if x.shape[1] > 1:
        wrong = -_softmax(others(x, positive))
        slopes = torch.cat([wrong[:, :positive], slopes[:, :1], wrong[:, positive:]], dim=1)
    return slopes


def _softmax(x: Tensor) -> Tensor:
    """torch.softmax, but 0 where every column is -inf."""
    return torch.where((x == -math.inf).all(dim=1, keepdim=True), 0.0, torch.softmax(x, dim=1))


def step_scores(x: Tensor, class_weights: Tensor | None, positive: int, probabilities: bool) -> tuple[Tensor, Tensor, Tensor]:
    """margin, prob and log_prob of each step.  3 x [S]"""
    if probabilities:
        prob = x[:, 0]
        return prob.log() - torch.log1p(-prob), prob, prob.log()
    margin = log_odds(x, class_weights, positive)
    decay = torch.where(margin < 0, margin, -margin).exp()  # unlike torch.sigmoid the same wherever in a vector a step lies
    return margin, torch.where(margin < 0, decay, 1.0) / (1.0 + decay), F.logsigmoid(margin)


def prm_scores(
    scores: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    class_weights: Tensor | None,
    *,
    positive: int,
    threshold: float,
    strict: bool,
    probabilities: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores of all steps, and every aggregate of each response.

    Args:
        scores: logits [S, C], or with ``probabilities`` probabilities [S, 1].
        offsets: [R + 1], where each response starts. mask: [S], which rows are steps; None: all.
        class_weights: [C], of a score that weighs the classes' probabilities; None: the one of class ``positive``.
        threshold, strict: a step is wrong unless p >= threshold (strict: p > threshold); logits go by the margin.

    Returns:
        steps [3, S]: margin, prob, log_prob; NaN in rows that are no steps.
        responses [11, R]: min, max, last, mean, product, log_product, geometric_mean, mean_margin, min_margin, max_margin,
            last_margin. Minimum and maximum are the first step with the least and greatest margin (of ``probabilities``:
            probability), or the first NaN. Sums are in float64, rounded once.
        indices [4, R] int64: count, argmin, argmax, first_error, counted inside the response; -1 for none.
        min_is_last [R] bool.

    An empty response has NaN, product 1 and log_product 0.
    """
    margin, prob, log_prob = step_scores(read(scores, mask), class_weights, positive, probabilities)
    key, bound = (prob, threshold) if probabilities else (margin, logit(threshold))
    right = key > bound if strict else key >= bound

    S, R = scores.shape[0], offsets.shape[0] - 1
    response, position, length = layout(offsets, mask, S)
    argmin = first(response, R, attaining(response, R, key.detach(), "amin"))
    argmax = first(response, R, attaining(response, R, key.detach(), "amax"))
    last = argmin.new_full((R + 1,), -1).scatter_reduce(0, response, torch.arange(S, device=key.device), "amax")[:R]
    last = torch.where(length > 0, last, S)
    position = F.pad(position, (0, 1), value=-1)  # of row S, which stands for "none"
    indices = torch.stack([length, *(position[row] for row in (argmin, argmax, first(response, R, ~right)))])

    steps = torch.stack([margin, prob, log_prob])
    if mask is not None:
        steps = torch.where(mask, steps, math.nan)
    margin, prob, log_prob = F.pad(steps.double(), (0, 1), value=math.nan)
    mean_margin, mean, log_mean = (total(response, R, values[:S]) / length for values in (margin, prob, log_prob))
    log_product = total(response, R, log_prob[:S])
    aggregates = [mean, exp_of_sum(log_product), log_product, exp_of_sum(log_mean), mean_margin]
    ends = (argmin, argmax, last)
    responses = torch.stack([*(prob[row] for row in ends), *aggregates, *(margin[row] for row in ends)])
    return steps, responses.to(key.dtype), indices, (argmin == last) & (length > 0)


def total(response: Tensor, R: int, values: Tensor) -> Tensor:
    """Sum over the steps of each response, in float64 and in their order.  [R]"""
    return torch.zeros(R + 1, dtype=torch.float64, device=values.device).index_add(0, response, values.double())[:R]


def exp_of_sum(x: Tensor) -> Tensor:
    """exp of float64 sums of log p, in the arithmetic of csrc/math/exp.h: equal sums give equal products wherever they lie."""
    x = x.clamp(min=-709.3)
    n = (x * 1.4426950408889634).round()
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    tail = r * (1 / math.factorial(13)) + 1 / math.factorial(12)
    for degree in range(11, 1, -1):
        tail = tail * r + 1 / math.factorial(degree)
    power_of_two = ((n.nan_to_num().long() + 1023) << 52).view(torch.float64)
    return ((tail * (r * r) + r) + 1.0) * power_of_two


def attaining(response: Tensor, R: int, key: Tensor, extreme: str) -> Tensor:
    """Which steps hold the least ("amin") or greatest ("amax") key of their response; where one is NaN, the NaN ones.  [S]"""
    start = key.new_full((R + 1,), math.inf if extreme == "amin" else -math.inf)
    extremes = start.scatter_reduce(0, response, key, extreme)
    return (key == extremes[response]) | key.isnan()


def first(response: Tensor, R: int, chosen: Tensor) -> Tensor:
    """First row of each response that is chosen, S where there is none.  [R]"""
    S = chosen.shape[0]
    row = torch.where(chosen, torch.arange(S, device=chosen.device), S)
    return row.new_full((R + 1,), S).scatter_reduce(0, response, row, "amin")[:R]


def prm_scores_backward(
    grad_steps: Tensor,
    grad_responses: Tensor,
    scores: Tensor,
    offsets: Tensor,
    mask: Tensor | None,
    class_weights: Tensor | None,
    steps: Tensor,
    responses: Tensor,
    indices: Tensor,
    *,
    positive: int,
    threshold: float,
    strict: bool,
    probabilities: bool,
) -> Tensor:
    """Gradient of the scores, exactly 0 in rows that are no steps.  [S, C]

    With a, b, c what reaches p, log p and z of a step: dz = a p (1 - p) + b (1 - p) + c, the product adding product (1 - p).
    For given probabilities dp = a + b / p + c / (p (1 - p)), and the product adds the product of the other steps. What is 0
    upstream adds exactly 0, also where a derivative is infinite or NaN.
    """
    x = read(scores, mask)
    S, R = scores.shape[0], offsets.shape[0] - 1
    response, position, length = layout(offsets, mask, S)
    upstream = F.pad(grad_responses, (0, 1))[:, response]  # of each step's response; 0 in rows that are no steps
    g_min, g_max, g_last, g_mean, g_product, g_log_product, g_geometric, g_mean_margin, *g_margins = upstream
    argmin, argmax = F.pad(indices[1:3], (0, 1), value=-1)[:, response]
    n = F.pad(length, (0, 1), value=1)[response]
    ends = [position == argmin, position == argmax, position == n - 1]

    def at_ends(*grads: Tensor) -> Tensor:
        return sum((torch.where(end, grad, 0.0) for end, grad in zip(ends, grads, strict=True)), torch.zeros_like(grads[0]))

    a = grad_steps[1] + at_ends(g_min, g_max, g_last) + g_mean / n
    b = grad_steps[2] + g_log_product
    c = grad_steps[0] + at_ends(*g_margins) + g_mean_margin / n
    product, geometric = F.pad(responses[[4, 6]], (0, 1))[:, response]
    prob = steps[1]
    if probabilities:
        rest, beside_zero = product_of_others(response, R, prob, steps[2])
        slope = geometric_mean_slope(prob, geometric, beside_zero, n)
        gradient = a + scaled(b, 1 / prob) + scaled(c, 1 / (prob * (1 - prob)))
        gradient = (gradient + scaled(g_product, rest) + scaled(g_geometric, slope))[:, None]
    else:
        wrong = torch.sigmoid(-steps[0])
        dz = scaled(a, prob * wrong) + scaled(b, wrong) + c
        dz = dz + scaled(g_product, product * wrong) + scaled(g_geometric, geometric * wrong / n)
        gradient = scaled(dz[:, None], log_odds_slopes(x, class_weights, positive))
    if mask is not None:
        gradient = torch.where(mask[:, None], gradient, 0.0)
    return gradient.to(scores.dtype).contiguous()


def scaled(gradient: Tensor, derivative: Tensor) -> Tensor:
    """gradient * derivative, 0 wherever the gradient is."""
    return torch.where(gradient == 0, 0.0, gradient * derivative)


def product_of_others(response: Tensor, R: int, prob: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
    """Product of the probabilities of the response's other steps, and whether one of those is 0.  [S], [S] bool"""
    zero = prob == 0
    beside_zero = F.pad(total(response, R, zero), (0, 1))[response] > zero.double()
    log_prob = torch.where(zero, 0.0, log_prob.double())
    rest = F.pad(total(response, R, log_prob), (0, 1))[response] - log_prob
    return torch.where(beside_zero, 0.0, rest.exp()).to(prob.dtype), beside_zero


def geometric_mean_slope(prob: Tensor, geometric: Tensor, beside_zero: Tensor, n: Tensor) -> Tensor:
    """d (prod p)^(1/n) / dp = geometric / (n p); at p = 0 it is 0 beside another 0, 1 for a lone step, else infinite.  [S]"""
    at_zero = torch.where(beside_zero, 0.0, torch.where(n == 1, 1.0, math.inf))
    return torch.where(prob == 0, at_zero, geometric / (n * prob))
