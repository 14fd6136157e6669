"""What the kernels of this feature do with one row: distances of a code, online softmax, zeros."""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime.math_kernels import divide, sqrt


@triton.jit
def lowest(SHAPE: tl.constexpr, W: tl.constexpr):
    """Where a running maximum starts: finite, so that no difference from it is NaN, whatever is masked with -inf."""
    return tl.full(SHAPE, -1.7976931348623157e308 if tl.float64 == W else -3.4028234663852886e38, W)


@triton.jit
def load_wide(p, o, m, W: tl.constexpr):
    """Elements ``o`` where ``m``, else -inf."""
    return tl.where(m, tl.load(p + o, mask=m, other=0.0).to(W), float("-inf"))


@triton.jit
def distances(
    p_table, code, o, m, offset, scale, N_CODES: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr, W: tl.constexpr
):
    """D[code, o], exactly 0 to the code itself.  METRIC 0 reads the table's row, else the codebook, by differences.  [BLOCK]"""
    if METRIC == 0:
        b_d = tl.load(p_table + code * N_CODES + o, mask=m, other=0.0).to(W) * scale + offset
    else:
        PART: tl.constexpr = 8 if DIM > 4 else (4 if DIM > 2 else 2)  # 32 bytes, the least that memory gives, or all of a code
        o_part = tl.arange(0, PART)
        b_d = tl.zeros(o.shape, W)
        for k in range(0, DIM, PART):
            o_dim = k + o_part
            m_dim = o_dim < DIM
            b_code = tl.load(p_table + code * DIM + o_dim, mask=m_dim, other=0.0).to(W)  # [PART]
            p_others = p_table + o[:, None].to(tl.int64) * DIM + o_dim[None, :]
            b_others = tl.load(p_others, mask=m[:, None] & m_dim[None, :], other=0.0).to(W)  # [BLOCK, PART]
            difference = b_others - b_code[None, :]
            b_d += tl.sum(difference * difference, axis=1)
        if METRIC == 1:
            b_d = divide(b_d, tl.full(o.shape, DIM, W))
        if METRIC == 3:
            b_d = sqrt(b_d)
    return tl.where(o == code, 0.0, b_d)


# --------------------------------------------------------------------------------------------------------- online softmax


@triton.jit
def absorb(b_m, b_l, b_x):
    """Take in one block, per lane: m = max x, l = sum exp(x - m), with one exponential an element.

    Lanes meet only in ``finish``, so that loads of the next block need not wait. -inf adds exactly 0; NaN stays in l.
    Returns (m, l, fade, e): another sum of exp(x - m) d goes on as sum * fade + e * d.
    """
    higher = b_x > b_m
    b_e = tl.exp(-tl.abs(b_x - b_m))
    b_fade = tl.where(higher, b_e, 1.0)
    b_e = tl.where(higher, 1.0, b_e)
    return tl.where(higher, b_x, b_m), b_l * b_fade + b_e, b_fade, b_e


@triton.jit
def mean(b_l, b_w, total):
    """sum w / sum l, with what the first sum lost: gradients are differences from this mean."""
    first = tl.sum(b_w, axis=0) / total
    return first + tl.sum(b_w - b_l * first, axis=0) / total


@triton.jit
def finish(b_m, b_l):
    """(m, l) of all lanes, and by what to scale a lane's sums."""
    m = tl.max(b_m, axis=0)
    b_fade = tl.exp(b_m - m)
    return m, tl.sum(b_l * b_fade, axis=0), b_fade


@triton.jit
def saved_top(m, total):
    """m, but -inf where all columns are -inf (m is the lowest number then), and NaN where one is."""
    return tl.where(total > 0.0, m, tl.log(total))


@triton.jit
def image_softmax(
    p_x, p_table, code, offset, scale, N_CODES: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr, W: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(m, l) over the N_CODES columns at ``p_x``, and the mean of their distances to ``code``."""
    if N_CODES <= BLOCK:  # one maximum first costs less than one a lane
        o = tl.arange(0, BLOCK)
        m_o = o < N_CODES
        b_x = load_wide(p_x, o, m_o, W)
        m = tl.maximum(tl.max(b_x, axis=0), lowest([], W))
        b_e = tl.exp(b_x - m)
        total = tl.sum(b_e, axis=0)
        b_d = distances(p_table, code, o, m_o, offset, scale, N_CODES, METRIC, DIM, W)
        return m, total, mean(b_e, b_e * b_d, total)
    else:
        b_m, b_l, b_w = lowest([BLOCK], W), tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
        for start in range(0, N_CODES, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m_o = o < N_CODES
            b_m, b_l, b_fade, b_e = absorb(b_m, b_l, load_wide(p_x, o, m_o, W))
            b_w = b_w * b_fade + b_e * distances(p_table, code, o, m_o, offset, scale, N_CODES, METRIC, DIM, W)
        m, total, b_fade = finish(b_m, b_l)
        return m, total, mean(b_l * b_fade, b_w * b_fade, total)


@triton.jit
def row_kind(p_labels, i_row, stride_labels, ignore_index, IMAGE_START: tl.constexpr, N_CODES: tl.constexpr):
    """(label, code, whether the row counts in the cross-entropy, whether it is an image row)."""
    label = tl.load(p_labels + i_row * stride_labels)
    code = label - IMAGE_START
    return label, code, label != ignore_index, (code >= 0) & (code < N_CODES)


@triton.jit
def text_start(i_block, image, IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, BLOCK: tl.constexpr):
    """First column of text block ``i_block``: the blocks without image columns, or all of a row that is no image row."""
    FIRST: tl.constexpr = IMAGE_START // BLOCK * BLOCK
    SPAN: tl.constexpr = (IMAGE_START + N_CODES + BLOCK - 1) // BLOCK * BLOCK - FIRST
    start = i_block * BLOCK
    return start + tl.where(image & (start >= FIRST), SPAN, 0)


@triton.jit
def block_counts(
    counted, image, IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    """(text blocks, end of the blocks with image columns) that a row needs: for cross-entropy if counted, if an image row."""
    FIRST: tl.constexpr = IMAGE_START // BLOCK * BLOCK
    LAST: tl.constexpr = (IMAGE_START + N_CODES + BLOCK - 1) // BLOCK * BLOCK
    ALL: tl.constexpr = (N_COLUMNS + BLOCK - 1) // BLOCK
    n_text = tl.where(image, ALL - (LAST - FIRST) // BLOCK, ALL)
    return tl.where(counted, n_text, 0), tl.where(image, LAST, FIRST)


@triton.jit
def whole_softmax(
    p_x, p_table, code, counted, image, middle, offset, scale,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    SMOOTH: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One pass over a row: (m, l) of all columns, (m, l, mean distance) of the image columns, sum of x - middle over all.

    The sum only if SMOOTH, else 0. The image columns keep a maximum of their own: the text's may be so high that they would
    vanish beside it.
    """
    FIRST: tl.constexpr = IMAGE_START // BLOCK * BLOCK
    b_m, b_l, b_sum = lowest([BLOCK], W), tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
    b_im, b_il, b_iw = b_m, b_l, b_l
    n_text, last = block_counts(counted, image, IMAGE_START, N_CODES, N_COLUMNS, BLOCK)
    for i_block in range(n_text):
        o = text_start(i_block, image, IMAGE_START, N_CODES, BLOCK) + tl.arange(0, BLOCK)
        m_o = o < N_COLUMNS
        b_x = load_wide(p_x, o, m_o, W)
        b_m, b_l, _, _ = absorb(b_m, b_l, b_x)
        if SMOOTH:
            b_sum += tl.where(m_o, b_x - middle, 0.0)
    for start in range(FIRST, last, BLOCK):
        o = start + tl.arange(0, BLOCK)
        m_o = o < N_COLUMNS
        m_image = (o >= IMAGE_START) & (o < IMAGE_START + N_CODES)
        b_x = load_wide(p_x, o, m_o, W)
        b_m, b_l, _, _ = absorb(b_m, b_l, tl.where(m_image, float("-inf"), b_x))
        b_im, b_il, b_fade, b_e = absorb(b_im, b_il, tl.where(m_image, b_x, float("-inf")))
        b_d = distances(p_table, code, o - IMAGE_START, m_image, offset, scale, N_CODES, METRIC, DIM, W)
        b_iw = b_iw * b_fade + b_e * b_d
        if SMOOTH:
            b_sum += tl.where(m_o, b_x - middle, 0.0)
    image_m, image_l, b_fade = finish(b_im, b_il)
    loss = mean(b_il * b_fade, b_iw * b_fade, image_l)
    text_m, text_l, _ = finish(b_m, b_l)
    m = tl.maximum(text_m, image_m)
    total = text_l * tl.exp(text_m - m) + image_l * tl.exp(image_m - m)
    return m, total, image_m, image_l, loss, tl.sum(b_sum, axis=0)


@triton.jit
def text_gradient(b_x, o, label, counted, grad, top, norm, target, share):
    """grad (softmax_j - (1 - eps) [j = y] - eps / V), softmax = exp(x - top) norm; target, share: what y and others lose."""
    b_p = tl.exp(b_x - top) * norm
    return tl.where(counted, grad * (b_p - tl.where(o == label, target, share)), 0.0)


# ------------------------------------------------------------------------------------------------------------------ zeros


@triton.jit
def store_zeros(p, START: tl.constexpr, STOP: tl.constexpr, BLOCK: tl.constexpr):
    """Zeros into columns START .. STOP - 1, from the first multiple of BLOCK on in aligned blocks."""
    b_zero = tl.zeros([BLOCK], p.dtype.element_ty)
    ALIGNED: tl.constexpr = (START + BLOCK - 1) // BLOCK * BLOCK
    if (START < ALIGNED) & (START < STOP):
        o = ALIGNED - BLOCK + tl.arange(0, BLOCK)
        tl.store(p + o, b_zero, mask=(o >= START) & (o < STOP))
    for start in range(ALIGNED, STOP, BLOCK):
        o = start + tl.arange(0, BLOCK)
        tl.store(p + o, b_zero, mask=o < STOP)
