"""Step scores and all aggregates in Triton: one launch forward, one backward, whole responses a program.

Formulas and cases are those of ``reference.py``; sums are float32, compensated (float64 for float64 scores).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.dtypes import wide
from ..runtime.launch import double_bits, on_device, power_of_two
from ..runtime.math_kernels import divide, numbers_of
from . import ops
from .reference import logit
from .step_kernels import (
    CLASSES,
    LOGIT,
    PAIR,
    PROBABILITY,
    WEIGHTED,
    add,
    exp_of_sum,
    fill_outside,
    first_least,
    index_or_none,
    load_key,
    odds,
    over_lanes,
    positions,
    probability_gradient,
    response_gradients,
    scores_of,
    spans,
    store_all,
    store_gradient,
    tile,
    times,
    total,
)

_LONG = 2**30  # rows from which on a place in a response may need 64 bits
_SIZES = [
    *("n_steps", "n_responses", "n_classes", "positive"),
    *("stride_step", "stride_class", "stride_offsets", "stride_mask", "stride_weight"),
]
_GRADS = ["stride_grad_steps", "stride_grad_step", "stride_grad_responses", "stride_grad_response"]


@triton.jit(do_not_specialize=[*_SIZES, "bound"])
def _prm_scores_fwd(
    p_scores, p_offsets, p_mask, p_weights, p_steps, p_responses, p_indices, p_min_is_last,
    n_steps, n_responses, n_classes, positive, stride_step, stride_class, stride_offsets, stride_mask, stride_weight, bound,
    KIND: tl.constexpr, STRICT: tl.constexpr, LONG: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """p = sigmoid(z), log p = -softplus(-z) of each step; minimum, maximum, last, sums and first error of each response.

    Reads the scores once (of more than two classes twice, the second time from cache) and writes 3 numbers a step: with two
    bf16 logits 16 bytes a step (the least possible), and 85 a response. Lanes meet once, after the last block of steps.
    """
    W: tl.constexpr = p_steps.dtype.element_ty
    NONE: tl.constexpr = 2**62 if LONG else 2**31 - 1  # a place after all steps
    (bound,) = numbers_of((bound,), W)
    n_steps, n_responses, positive = tl.cast(n_steps, tl.int64), tl.cast(n_responses, tl.int64), tl.cast(positive, tl.int64)
    i_response, m_response, first, length = spans(p_offsets, stride_offsets, n_steps, n_responses, LONG, BLOCK_R)
    for i in tl.static_range(3):
        fill_outside(p_steps + i * n_steps, float("nan"), 1, p_offsets, stride_offsets, n_steps, n_responses, BLOCK_R * BLOCK_S)

    b_zero, b_none = tl.zeros([BLOCK_R, BLOCK_S], W), tl.full([BLOCK_R, BLOCK_S], NONE, length.dtype)
    b_margins, b_probs, b_logs, b_lost_margins, b_lost_probs, b_lost_logs = b_zero, b_zero, b_zero, b_zero, b_zero, b_zero
    b_least, b_greatest, b_last = b_zero + float("inf"), b_zero + float("inf"), b_zero  # the greatest with its sign turned
    b_nan_at, b_least_at, b_greatest_at, b_last_at, b_wrong_at = b_none, b_none, b_none, b_none, b_none
    count = tl.zeros([BLOCK_R], length.dtype)
    for start in range(0, tl.max(length, axis=0), BLOCK_S):
        o, i_step, m_row, m = tile(start, first, length, p_mask, stride_mask, BLOCK_R, BLOCK_S)
        b_index = positions(o, m, count, p_mask)
        count += tl.sum(m.to(tl.int32), axis=1)
        p_x = p_scores + i_step * stride_step
        b_key = load_key(p_x, m, positive, n_classes, stride_class, p_weights, stride_weight, KIND, W)
        right = b_key > bound if STRICT else b_key >= bound
        b_wrong_at = tl.minimum(b_wrong_at, tl.where(m & (right == 0), b_index, NONE))
        b_nan_at = tl.minimum(b_nan_at, tl.where(m & (b_key != b_key), b_index, NONE))
        b_last, b_last_at = tl.where(m, b_key, b_last), tl.where(m, b_index, b_last_at)
        b_key = tl.where(m, b_key, float("nan"))
        b_least, b_least_at = first_least(b_least, b_least_at, b_key, b_index)
        b_greatest, b_greatest_at = first_least(b_greatest, b_greatest_at, -b_key, b_index)
        b_margin, b_prob, b_log = scores_of(b_key, KIND)
        store_all(p_steps + i_step, n_steps, (b_margin, b_prob, b_log), m_row)
        b_margins, b_lost_margins = add(b_margins, b_lost_margins, tl.where(m, b_margin, 0.0))
        b_probs, b_lost_probs = add(b_probs, b_lost_probs, tl.where(m, b_prob, 0.0))
        b_logs, b_lost_logs = add(b_logs, b_lost_logs, tl.where(m, b_log, 0.0))

    nan_at = tl.min(b_nan_at, axis=1)
    least, argmin = over_lanes(b_least, b_least_at, nan_at, count, NONE)
    greatest, argmax = over_lanes(b_greatest, b_greatest_at, nan_at, count, NONE)
    last = tl.sum(tl.where(b_last_at == (count - 1)[:, None], b_last, 0.0), axis=1)
    min_margin, min_prob, _ = scores_of(least, KIND)
    max_margin, max_prob, _ = scores_of(-greatest, KIND)
    last_margin, last_prob, _ = scores_of(tl.where(count > 0, last, float("nan")), KIND)
    n = count.to(W)
    log_product, lost = total(b_logs, b_lost_logs)
    sum_probs, sum_margins = total(b_probs, b_lost_probs)[0], total(b_margins, b_lost_margins)[0]
    # The mean's by tl.exp: with a second exact one the classes' registers spill on sm_80.
    values = (
        min_prob, max_prob, last_prob, divide(sum_probs, n), exp_of_sum(log_product, lost), log_product,
        tl.exp(divide(log_product, n)), divide(sum_margins, n), min_margin, max_margin, last_margin,
    )  # fmt: skip
    store_all(p_responses + i_response, n_responses, values, m_response)
    places = (count, argmin, argmax, index_or_none(tl.min(b_wrong_at, axis=1), NONE))
    store_all(p_indices + i_response, n_responses, places, m_response)
    tl.store(p_min_is_last + i_response, ((count > 0) & (argmin == count - 1)).to(tl.uint8), mask=m_response)


@triton.jit
def _product_of_others(
    p_logs, first, length, p_mask, stride_mask, W: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr
):
    """(log of the product of a response's probabilities but the zeros, what it lost, number of zeros).  [BLOCK_R, 1] each"""
    b_sum, zeros = tl.zeros([BLOCK_R, BLOCK_S], W), tl.zeros([BLOCK_R], tl.int32)
    b_lost = b_sum
    for start in range(0, tl.max(length, axis=0), BLOCK_S):
        _, i_step, _, m = tile(start, first, length, p_mask, stride_mask, BLOCK_R, BLOCK_S)
        b_log = tl.load(p_logs + i_step, mask=m, other=0.0)
        zero = b_log == float("-inf")
        zeros += tl.sum(zero.to(tl.int32), axis=1)
        b_sum, b_lost = add(b_sum, b_lost, tl.where(zero, 0.0, b_log))
    log_product, lost = total(b_sum, b_lost)
    return log_product[:, None], lost[:, None], zeros[:, None]


@triton.jit(do_not_specialize=[*_SIZES, *_GRADS])
def _prm_scores_bwd(
    p_grad_steps, p_grad_responses, p_scores, p_offsets, p_mask, p_weights, p_steps, p_responses, p_indices, p_grad_scores,
    stride_grad_steps, stride_grad_step, stride_grad_responses, stride_grad_response,
    n_steps, n_responses, n_classes, positive, stride_step, stride_class, stride_offsets, stride_mask, stride_weight,
    KIND: tl.constexpr, LONG: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dz = a p (1 - p) + b (1 - p) + c, with a, b, c what reaches p, log p and z of a step; 0 in rows that are no steps.

    Of given probabilities dp = a + b / p + c / (p (1 - p)). Reads the margin and three gradients a step, and writes one a
    class: with two bf16 logits 20 bytes a step (the least possible), and 84 a response. Weighted or more than two classes
    are read twice more, probabilities once.
    """
    W: tl.constexpr = p_steps.dtype.element_ty
    D: tl.constexpr = p_grad_scores.dtype.element_ty
    n_steps, n_responses, positive = tl.cast(n_steps, tl.int64), tl.cast(n_responses, tl.int64), tl.cast(positive, tl.int64)
    i_response, m_response, first, length = spans(p_offsets, stride_offsets, n_steps, n_responses, LONG, BLOCK_R)
    fill_outside(p_grad_scores, 0.0, n_classes, p_offsets, stride_offsets, n_steps, n_responses, BLOCK_R * BLOCK_S)

    p_g = p_grad_responses + i_response * stride_grad_response
    grads = response_gradients(p_g, tl.cast(stride_grad_responses, tl.int64), m_response)
    g_min, g_max, g_last, g_mean, g_product, g_log_product, g_geometric, g_mean_margin = grads[0]
    g_margin_min, g_margin_max, g_margin_last = grads[1]
    p_index = p_indices + i_response
    last = tl.load(p_index, mask=m_response, other=0).to(length.dtype)[:, None] - 1
    argmin = tl.load(p_index + n_responses, mask=m_response, other=0).to(length.dtype)[:, None]
    argmax = tl.load(p_index + 2 * n_responses, mask=m_response, other=0).to(length.dtype)[:, None]
    n = (last + 1).to(W)
    product = tl.load(p_responses + 4 * n_responses + i_response, mask=m_response, other=0.0)[:, None]
    geometric = tl.load(p_responses + 6 * n_responses + i_response, mask=m_response, other=0.0)[:, None]
    if KIND == PROBABILITY:
        log_product, lost, zeros = _product_of_others(
            p_steps + 2 * n_steps, first, length, p_mask, stride_mask, W, BLOCK_R, BLOCK_S
        )  # fmt: skip
    else:
        g_log_product += times(g_product, product) + divide(times(g_geometric, geometric), n)
    g_mean, g_mean_margin = divide(g_mean, n), divide(g_mean_margin, n)
    count = tl.zeros([BLOCK_R], length.dtype)
    for start in range(0, tl.max(length, axis=0), BLOCK_S):
        o, i_step, m_row, m = tile(start, first, length, p_mask, stride_mask, BLOCK_R, BLOCK_S)
        b_index = positions(o, m, count, p_mask)
        count += tl.sum(m.to(tl.int32), axis=1)
        p_grad = p_grad_steps + i_step * stride_grad_step
        b_c = tl.load(p_grad, mask=m, other=0.0) + g_mean_margin
        b_a = tl.load(p_grad + stride_grad_steps, mask=m, other=0.0) + g_mean
        b_b = tl.load(p_grad + 2 * tl.cast(stride_grad_steps, tl.int64), mask=m, other=0.0) + g_log_product
        b_a += tl.where(b_index == argmin, g_min, 0.0) + tl.where(b_index == argmax, g_max, 0.0)
        b_a += tl.where(b_index == last, g_last, 0.0)
        b_c += tl.where(b_index == argmin, g_margin_min, 0.0) + tl.where(b_index == argmax, g_margin_max, 0.0)
        b_c += tl.where(b_index == last, g_margin_last, 0.0)
        p_x = p_scores + i_step * stride_step
        if KIND == PROBABILITY:
            b_p = tl.load(p_x, mask=m, other=0.5).to(W)
            b_log = tl.load(p_steps + 2 * n_steps + i_step, mask=m, other=0.0)
            b_d = probability_gradient(
                b_a, b_b, b_c, g_product, g_geometric, b_p, b_log, log_product, lost, zeros, geometric, n
            )  # fmt: skip
        else:
            b_p, b_q = odds(tl.load(p_steps + i_step, mask=m, other=0.0))
            b_d = b_c + times(b_a, b_p * b_q) + times(b_b, b_q)
        b_d = tl.where(m, b_d, 0.0)
        store_gradient(
            p_grad_scores + i_step * n_classes, b_d, p_x, m, m_row, positive, n_classes, stride_class, p_weights,
            stride_weight, KIND, W, D,
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the launchers


def _kind(scores: Tensor, class_weights: Tensor | None, probabilities: bool) -> int:
    if probabilities:
        return PROBABILITY.value
    if class_weights is not None:
        return WEIGHTED.value
    return (LOGIT, PAIR, CLASSES)[min(scores.shape[1], 3) - 1].value


def _blocks(S: int, R: int) -> dict[str, int]:
    """A tile, one step a thread: of the mean length, so that most responses need one, but narrower where there are many.

    Lanes that share a response cost instructions when they meet, and pay only where responses are too few to fill a device.
    """
    responses = max(R, 1)
    block_s = power_of_two(min(-(-S // responses), 2**16 // responses), 2, 512)
    block_r = max(1, 128 // block_s)
    return {"BLOCK_R": block_r, "BLOCK_S": block_s, "num_warps": block_r * block_s // (64 if torch.version.hip else 32)}


def _arguments(scores: Tensor, offsets: Tensor, mask: Tensor | None, class_weights: Tensor | None, positive: int) -> tuple:
    """(tensors, sizes and strides) that both kernels take."""
    tensors = (scores, offsets, None if mask is None else mask.view(torch.uint8), class_weights)
    return tensors, (
        scores.shape[0], offsets.shape[0] - 1, scores.shape[1], positive, *scores.stride(), offsets.stride(0),
        0 if mask is None else mask.stride(0), 0 if class_weights is None else class_weights.stride(0),
    )  # fmt: skip


def prm_scores(
    scores: Tensor, offsets: Tensor, mask: Tensor | None, class_weights: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op ``prm_scores`` (see ``ops.py``): one launch."""
    S, R, dtype = scores.shape[0], offsets.shape[0] - 1, wide(scores.dtype)
    steps = torch.empty((len(ops.STEPS), S), dtype=dtype, device=scores.device)
    responses = torch.empty((len(ops.RESPONSES), R), dtype=dtype, device=scores.device)
    indices = torch.empty((len(ops.INDICES), R), dtype=torch.int64, device=scores.device)
    min_is_last = torch.empty((R,), dtype=torch.bool, device=scores.device)
    bound = options["threshold"] if options["probabilities"] else logit(options["threshold"])
    if S or R:
        tensors, sizes = _arguments(scores, offsets, mask, class_weights, options["positive"])
        blocks = _blocks(S, R)
        with on_device(scores.device):
            _prm_scores_fwd[(max(1, triton.cdiv(R, blocks["BLOCK_R"])),)](
                *tensors, steps, responses, indices, min_is_last.view(torch.uint8), *sizes,
                double_bits(bound) if dtype == torch.float64 else bound,
                KIND=_kind(scores, class_weights, options["probabilities"]), STRICT=options["strict"], LONG=S >= _LONG,
                **blocks, enable_fp_fusion=False,
            )  # fmt: skip
    return steps, responses, indices, min_is_last


def prm_scores_backward(
    grad_steps: Tensor, grad_responses: Tensor, scores: Tensor, offsets: Tensor, mask: Tensor | None,
    class_weights: Tensor | None, steps: Tensor, responses: Tensor, indices: Tensor, **options: Any,
) -> Tensor:  # fmt: skip
    """The op ``prm_scores_backward``: one launch, which writes every element of the gradient."""
    S, R = scores.shape[0], offsets.shape[0] - 1
    grad_scores = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    if S:
        tensors, sizes = _arguments(scores, offsets, mask, class_weights, options["positive"])
        blocks = _blocks(S, R)
        with on_device(scores.device):
            _prm_scores_bwd[(max(1, triton.cdiv(R, blocks["BLOCK_R"])),)](
                grad_steps, grad_responses, *tensors, steps.contiguous(), responses.contiguous(), indices.contiguous(),
                grad_scores, *grad_steps.stride(), *grad_responses.stride(), *sizes,
                KIND=_kind(scores, class_weights, options["probabilities"]), LONG=S >= _LONG, **blocks,
                enable_fp_fusion=False,
            )  # fmt: skip
    return grad_scores
