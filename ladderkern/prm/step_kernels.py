# ruff: noqa: RUF005 - Triton compiles a subset of Python
"""What both kernels of this feature do with a tile of steps: where they lie, their margins, sums over blocks, zeros."""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime.math_kernels import divide, exp, log1p, rounded

# How a row of scores gives a margin: a probability, the logit itself, one of two logits, of several, weighted classes.
PROBABILITY, LOGIT, PAIR, CLASSES, WEIGHTED = (tl.constexpr(i) for i in range(5))

# ---------------------------------------------------------------------------------------------------------- where steps lie


@triton.jit
def spans(p_offsets, stride_offsets, n_steps, n_responses, LONG: tl.constexpr, BLOCK_R: tl.constexpr):
    """(responses of this program, which exist, first row of each, number of rows).  [BLOCK_R] each

    All are int64 but the number of rows, and with it all places in a response: int64 if LONG, else int32.
    Whatever the offsets hold, the rows lie in 0 .. n_steps - 1.
    """
    i_response = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_response = i_response < n_responses
    p_first = p_offsets + i_response * stride_offsets
    first = inside(tl.load(p_first, mask=m_response, other=0), n_steps)
    end = inside(tl.load(p_first + stride_offsets, mask=m_response, other=0), n_steps)
    return i_response, m_response, first, tl.maximum(end - first, 0).to(tl.int64 if LONG else tl.int32)


@triton.jit
def inside(offset, n_steps):
    """An offset, held between 0 and n_steps."""
    return tl.minimum(tl.maximum(offset, 0), n_steps)


@triton.jit
def tile(start, first, length, p_mask, stride_mask, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr):
    """(row in its response, row of the scores, whether it exists, whether it is a step).  [BLOCK_R, BLOCK_S] each"""
    o = tl.broadcast_to(tl.cast(start, length.dtype) + tl.arange(0, BLOCK_S)[None, :], (BLOCK_R, BLOCK_S))
    m_row = o < length[:, None]
    i_step = first[:, None] + o
    m_step = m_row
    if p_mask is not None:
        m_step = m_row & (tl.load(p_mask + i_step * stride_mask, mask=m_row, other=0) != 0)
    return o, i_step, m_row, m_step


@triton.jit
def positions(o, m_step, count, p_mask):
    """Index of each step among the steps of its response, of which ``count`` lie before this tile."""
    if p_mask is None:
        return o
    else:
        return count[:, None] + tl.cumsum(m_step.to(tl.int32), axis=1) - 1


@triton.jit
def fill_outside(p, value, width, p_offsets, stride_offsets, n_steps, n_responses, BLOCK: tl.constexpr):
    """``value`` into the rows of ``width`` elements that lie before or after all responses: none, if the offsets are right."""
    if tl.program_id(0) == 0:
        _fill(p, value, 0, inside(tl.load(p_offsets), n_steps) * width, BLOCK)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        _fill(p, value, inside(tl.load(p_offsets + n_responses * stride_offsets), n_steps) * width, n_steps * width, BLOCK)


@triton.jit
def _fill(p, value, first, end, BLOCK: tl.constexpr):
    b_value = tl.full([BLOCK], value, p.dtype.element_ty)
    for start in range(first, end, BLOCK):
        o = start + tl.arange(0, BLOCK)
        tl.store(p + o, b_value, mask=o < end)


# ---------------------------------------------------------------------------------------------------------------- one step


@triton.jit
def load_key(p_x, m, positive, n_classes, stride_class, p_weights, stride_weight, KIND: tl.constexpr, W: tl.constexpr):
    """What steps are ordered by: the margin of the classes at ``p_x``, of a PROBABILITY the probability itself."""
    if KIND <= LOGIT:
        return tl.load(p_x, mask=m, other=0.0).to(W)
    elif KIND == PAIR:
        b_right = tl.load(p_x + positive * stride_class, mask=m, other=0.0).to(W)
        return b_right - tl.load(p_x + (1 - positive) * stride_class, mask=m, other=0.0).to(W)
    else:
        sums = class_sums(p_x, m, positive, n_classes, stride_class, p_weights, stride_weight, KIND, W)
        b_right, b_right_sum, b_wrong, b_wrong_sum = sums
        return (b_right - b_wrong) + (tl.log(b_right_sum) - tl.log(b_wrong_sum))


@triton.jit
def class_weight(i_class, positive, p_weights, stride_weight, KIND: tl.constexpr, W: tl.constexpr):
    """(share of a class in right, in wrong)."""
    share = tl.load(p_weights + i_class * stride_weight).to(W) if KIND == WEIGHTED else (i_class == positive).to(W)
    return share, 1.0 - share


@triton.jit
def class_sums(p_x, m, positive, n_classes, stride_class, p_weights, stride_weight, KIND: tl.constexpr, W: tl.constexpr):
    """(m, sum of share * exp(x - m)) over the classes that count as right, and the same of wrong.

    m is their maximum, 0 where that is infinite. Classes without a share drop out, whatever they hold.
    """
    b_right = tl.full(p_x.shape, float("-inf"), W)
    b_wrong = b_right
    for i in range(n_classes):
        i_class = tl.cast(i, tl.int64)
        b_x = tl.load(p_x + i_class * stride_class, mask=m, other=0.0).to(W)
        right, wrong = class_weight(i_class, positive, p_weights, stride_weight, KIND, W)
        b_right = tl.where(right > 0.0, tl.maximum(b_right, b_x), b_right)
        b_wrong = tl.where(wrong > 0.0, tl.maximum(b_wrong, b_x), b_wrong)
    b_right = tl.where(tl.abs(b_right) == float("inf"), 0.0, b_right)
    b_wrong = tl.where(tl.abs(b_wrong) == float("inf"), 0.0, b_wrong)
    b_right_sum = tl.zeros(p_x.shape, W)
    b_wrong_sum = b_right_sum
    for i in range(n_classes):
        i_class = tl.cast(i, tl.int64)
        b_x = tl.load(p_x + i_class * stride_class, mask=m, other=0.0).to(W)
        right, wrong = class_weight(i_class, positive, p_weights, stride_weight, KIND, W)
        b_right_sum += weighted(right, b_x, b_right)
        b_wrong_sum += weighted(wrong, b_x, b_wrong)
    return b_right, b_right_sum, b_wrong, b_wrong_sum


@triton.jit
def weighted(share, b_x, b_m):
    """share * exp(x - m), 0 of classes without a share. Not the exact ``exp``: its registers would spill on sm_80."""
    return tl.where(share > 0.0, share * tl.exp(b_x - b_m), 0.0)


@triton.jit
def scores_of(b_key, KIND: tl.constexpr):
    """(margin, prob, log_prob) of a key, each to its last digits at both ends."""
    if KIND == PROBABILITY:
        high = b_key >= 0.5
        b_far = tl.log(tl.where(high, 1.0 - b_key, b_key))
        b_near = log1p(tl.where(high, b_key - 1.0, -b_key))  # the difference is exact where it is taken
        return tl.where(high, b_near - b_far, b_far - b_near), b_key, tl.where(high, b_near, b_far)
    else:
        b_e = exp(-tl.abs(b_key))
        b_prob = divide(tl.where(b_key >= 0.0, 1.0, b_e), 1.0 + b_e)
        return b_key, b_prob, tl.where(b_key > 0.0, 0.0, b_key) - log1p(b_e)


@triton.jit
def odds(b_margin):
    """(p, 1 - p) of a margin, each to its last digits."""
    b_e = exp(-tl.abs(b_margin))
    b_high, b_low = divide(tl.cast(1.0, b_e.dtype), 1.0 + b_e), divide(b_e, 1.0 + b_e)
    high = b_margin >= 0.0
    return tl.where(high, b_high, b_low), tl.where(high, b_low, b_high)


@triton.jit
def times(gradient, derivative):
    """gradient * derivative, 0 wherever the gradient is."""
    return tl.where(gradient == 0.0, 0.0, gradient * derivative)


@triton.jit
def response_gradients(p, stride, m_response):
    """What reaches each aggregate, in the order of the packed output: (of probabilities and means, of margins at the ends)."""
    first, rest = (), ()
    for i in tl.static_range(8):
        first = first + (tl.load(p + i * stride, mask=m_response, other=0.0)[:, None],)
    for i in tl.static_range(8, 11):
        rest = rest + (tl.load(p + i * stride, mask=m_response, other=0.0)[:, None],)
    return first, rest


@triton.jit
def store_all(p, stride, values, m):
    """Each of ``values``, ``stride`` elements after the one before."""
    for i in tl.static_range(len(values)):
        tl.store(p + i * stride, values[i], mask=m)


@triton.jit
def probability_gradient(
    b_a, b_b, b_c, g_product, g_geometric, b_p, b_log, log_product, lost, zeros, geometric, n
):  # fmt: skip
    """a + b / p + c / (p (1 - p)), and what reaches p by the product and the geometric mean of the response."""
    zero = b_p == 0.0
    beside_zero = zeros > zero.to(tl.int32)
    b_log, b_lost = add(log_product, lost, tl.where(zero, 0.0, -b_log))
    b_rest = tl.where(beside_zero, 0.0, exp_of_sum(b_log, b_lost))
    b_at_zero = tl.where(beside_zero, 0.0, tl.where(n == 1.0, 1.0, float("inf")))
    b_slope = tl.where(zero, b_at_zero, divide(geometric, n * b_p))
    one = tl.cast(1.0, b_p.dtype)
    b_d = b_a + times(b_b, divide(one, b_p)) + times(b_c, divide(one, b_p * (1.0 - b_p)))
    return b_d + times(g_product, b_rest) + times(g_geometric, b_slope)


@triton.jit
def store_gradient(
    p_out, b_d, p_x, m, m_row, positive, n_classes, stride_class, p_weights, stride_weight,
    KIND: tl.constexpr, W: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """d times the derivative of the key by each class: where ``m_row``, with d = 0 in rows that are no steps."""
    if KIND <= LOGIT:
        tl.store(p_out, rounded(b_d, D), mask=m_row)
    elif KIND == PAIR:
        tl.store(p_out + positive, rounded(b_d, D), mask=m_row)
        tl.store(p_out + 1 - positive, rounded(-b_d, D), mask=m_row)
    else:
        sums = class_sums(p_x, m, positive, n_classes, stride_class, p_weights, stride_weight, KIND, W)
        b_right, b_right_sum, b_wrong, b_wrong_sum = sums
        for i in range(n_classes):
            i_class = tl.cast(i, tl.int64)
            b_x = tl.load(p_x + i_class * stride_class, mask=m, other=0.0).to(W)
            right, wrong = class_weight(i_class, positive, p_weights, stride_weight, KIND, W)
            b_slope = -_share(wrong, b_x, b_wrong, b_wrong_sum)
            b_slope += _share(right, b_x, b_right, b_right_sum) if KIND == WEIGHTED else right
            tl.store(p_out + i_class, rounded(times(b_d, b_slope), D), mask=m_row)


@triton.jit
def _share(share, b_x, b_m, b_sum):
    """share * exp(x - m) / sum; 0 of classes without a share, and where the sum is 0."""
    return tl.where(b_sum == 0.0, 0.0, divide(weighted(share, b_x, b_m), b_sum))


# --------------------------------------------------------------------------------------------------------------- over blocks


@triton.jit
def add(b_sum, b_lost, b_x):
    """(sum + x, what all roundings lost so far): two-sum of Knuth; infinities lose nothing."""
    b_total = b_sum + b_x
    b_part = b_total - b_sum
    b_error = (b_sum - (b_total - b_part)) + (b_x - b_part)
    return b_total, b_lost + tl.where(b_error == b_error, b_error, 0.0)


@triton.jit
def _meet(a_sum, a_lost, b_sum, b_lost):
    return add(a_sum, a_lost + b_lost, b_sum)


@triton.jit
def total(b_sum, b_lost):
    """(sum over the lanes, what its own rounding lost).  2 x [BLOCK_R]"""
    b_sum, b_lost = tl.reduce((b_sum, b_lost), 1, _meet)
    b_total = b_sum + b_lost
    b_error = (b_sum - b_total) + b_lost
    return b_total, tl.where(b_error == b_error, b_error, 0.0)


@triton.jit
def exp_of_sum(b_x, b_lost):
    """exp(x + lost): a product of 2^-24 relative accuracy needs its logarithm to more digits than a float holds."""
    b_e = exp(b_x)
    return b_e + b_e * b_lost


@triton.jit
def first_least(b_least, b_at, b_key, b_index):
    """(least key, its first index), per lane, with the next block taken in. NaN is never the least."""
    lower, same = b_key < b_least, b_key == b_least
    b_at = tl.where(lower, b_index, tl.where(same, tl.minimum(b_at, b_index), b_at))
    return tl.where(lower, b_key, b_least), b_at


@triton.jit
def over_lanes(b_least, b_at, nan_at, count, NONE: tl.constexpr):
    """(least key of each response, its index): the first NaN if there is one, NaN and -1 where there is no step.  [BLOCK_R]"""
    least = tl.min(b_least, axis=1)
    at = tl.min(tl.where(b_least == least[:, None], b_at, NONE), axis=1)
    usual = (nan_at == NONE) & (count > 0)
    return tl.where(usual, least, float("nan")), index_or_none(tl.where(nan_at == NONE, at, nan_at), NONE)


@triton.jit
def index_or_none(index, NONE: tl.constexpr):
    """An index, -1 for NONE."""
    return tl.where(index == NONE, -1, index)
