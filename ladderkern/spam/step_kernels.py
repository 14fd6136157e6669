# ruff: noqa: SIM102 - Triton compiles a subset of Python
"""The SPAM step in Triton: what one program does with its block of one tensor."""

from __future__ import annotations

import triton
import triton.language as tl

from ..runtime.math_kernels import divide, everywhere, numbers_of, round_stochastically, rounded, sqrt
from .formula_kernels import bits_below, find, phase, position, random_word, step_size, stratum_bits, table_fields
from .reference import _ROUNDING_STREAM

DENSE, ELEMENT, ROW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_ROUNDING = tl.constexpr(_ROUNDING_STREAM)
_NUMBERS = [  # arguments whose values must not make another compilation
    *("n_tensors", "trips", "lr", "decay", "weight_decay", "beta1", "rest1", "log1", "beta2", "rest2", "log2", "eps"),
    *("threshold", "warmup_angle", "reset_interval", "warmup_steps", "unclipped_steps", "chosen", "n_combinations"),
    *("key0", "key1"),
]

# ------------------------------------------------------------------------------------------------------------- the update


@triton.jit
def _pointers(addresses, starts, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, FULL: tl.constexpr):
    """Pointers to the tile's first elements. A hint marks the value it is given: each branch must make its own."""
    p_p = addresses[0].to(tl.pointer_type(P)) + starts[0]
    p_g = addresses[1].to(tl.pointer_type(G)) + starts[0]
    p_m = addresses[2].to(tl.pointer_type(M)) + starts[1]
    p_v = addresses[3].to(tl.pointer_type(M)) + starts[1]
    if FULL:
        return tl.multiple_of(p_p, 16), tl.multiple_of(p_g, 16), tl.multiple_of(p_m, 16), tl.multiple_of(p_v, 16)
    else:
        return p_p, p_g, p_m, p_v


@triton.jit
def _update(
    addresses, starts, o, o_m, left, drawn, rates, switches, scale, place, counters,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, MAXIMIZE: tl.constexpr, FREEZE: tl.constexpr, FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile: load, decay, clip, update, store.  FULL: every element exists and lies 16-byte aligned."""
    p_p, p_g, p_m, p_v = _pointers(addresses, starts, P, G, M, FULL)
    beta1, rest1, beta2, rest2, eps, threshold, step_size, decay = rates
    m_p = tl.full(o.shape, True, tl.int1) if FULL else o < left
    m_m = m_p & drawn
    b_p = tl.load(p_p + o, mask=m_p).to(decay.dtype) * decay
    b_g = tl.load(p_g + o, mask=m_m if scale is None else m_p, other=0.0).to(decay.dtype)
    if scale is not None:
        b_g = divide(b_g, scale)
        tl.store(p_g + o, rounded(b_g, G), mask=m_p)
    if MAXIMIZE:
        b_g = -b_g
    m_kept = m_m & everywhere(switches[0], o)
    b_m = tl.load(p_m + o_m, mask=m_kept, other=0.0).to(decay.dtype)
    b_v = tl.load(p_v + o_m, mask=m_kept, other=0.0).to(decay.dtype)
    bound = threshold * b_v
    clip = (b_g * b_g > bound) & everywhere(switches[1], o)
    if not FREEZE:
        clip = clip & (b_v != 0.0)
    root = sqrt(tl.where(clip, bound, 0.0))
    b_g = tl.where(clip, tl.where(b_g < 0.0, -root, root), b_g)
    b_m = beta1 * b_m + rest1 * b_g
    b_v = beta2 * b_v + rest2 * (b_g * b_g)
    update = step_size * divide(b_m, sqrt(b_v) + eps)
    tl.store(p_p + o, rounded(tl.where(m_m, b_p - update, b_p), P), mask=m_p)
    if M.is_bf16():
        n, index, key0, key1 = counters
        element = position(starts[0], o, place[0], place[1], place[2], BLOCK)
        noise = random_word(element, n, index, key0, key1 ^ _ROUNDING)
        tl.store(p_m + o_m, round_stochastically(b_m, noise & 0xFFFF), mask=m_m)
        tl.store(p_v + o_m, round_stochastically(b_v, noise >> 16), mask=m_m)
    else:
        tl.store(p_m + o_m, b_m.to(M), mask=m_m)
        tl.store(p_v + o_m, b_v.to(M), mask=m_m)


@triton.jit
def _tile(i_local, numel, row_length, BLOCK: tl.constexpr, MASK: tl.constexpr):
    """Block i_local of a tensor: (row, column of the row, first element, elements left, offsets from the first element)."""
    if MASK == ROW:
        blocks = (row_length + BLOCK - 1) // BLOCK
        i_row = i_local // blocks
        column = (i_local - i_row * blocks) * BLOCK
        return i_row, column, i_row * row_length + column, row_length - column, tl.arange(0, BLOCK)
    else:
        start = i_local * BLOCK
        o = tl.arange(0, BLOCK)
        if MASK == ELEMENT:
            o = tl.arange(0, BLOCK // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
        return i_local, start, start, numel - start, o


@triton.jit
def _draw_row(i_row, column, row_length, first_row, chosen, draw, o):
    """(start in the moments, mask of the tile, whether the row is drawn)."""
    stratum = (first_row >> 4) + (i_row >> 4)
    bits = stratum_bits(stratum, draw[0], draw[1], draw[2], draw[3], draw[4], draw[5])
    j = (i_row & 15).to(tl.int32)
    drawn = ((bits >> j) & 1) != 0
    start = ((i_row >> 4) * chosen + bits_below(bits, j)) * row_length + column
    return start, everywhere(drawn, o), drawn


@triton.jit
def _draw_elements(start, place, chosen, draw, BLOCK: tl.constexpr):
    """(start in the moments, offsets from it [BLOCK/16, 16], which elements are drawn): one Philox word a stratum."""
    o_stratum = tl.arange(0, BLOCK // 16)
    stratum = position(start, o_stratum * 16, place[0], place[1], place[2], BLOCK) >> 4
    bits = stratum_bits(stratum, draw[0], draw[1], draw[2], draw[3], draw[4], draw[5])[:, None]
    j = tl.arange(0, 16)[None, :]
    return (start >> 4) * chosen, o_stratum[:, None] * chosen + bits_below(bits, j), ((bits >> j) & 1) != 0


@triton.jit(do_not_specialize=_NUMBERS)
def _spam_step(
    p_table, p_combinations, p_lr, p_found_inf, p_grad_scale, n_tensors, trips,
    lr, decay, weight_decay, beta1, rest1, log1, beta2, rest2, log2, eps, threshold, warmup_angle,
    reset_interval, warmup_steps, unclipped_steps, chosen, n_combinations, key0, key1,
    P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, MASK: tl.constexpr, CYCLE_CORRECTION: tl.constexpr,
    FREEZE: tl.constexpr, MAXIMIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """p *= 1 - lr wd; where drawn: g clipped to +-sqrt(theta v); m, v = EMAs of g, g^2; p -= size m / (sqrt(v) + eps).

    One block of one tensor a program, found in ``p_table`` (kernels.py makes it); with a row mask it lies within one row.
    Reads p, g, m, v and writes p, m, v: 28 bytes an element in float32, 20 on a restart, the least possible; m and v only
    where drawn; an undrawn row is read and written only for its weight decay (8 bytes), else not at all.
    """
    i_block = tl.program_id(0)
    if p_found_inf is not None:
        if tl.load(p_found_inf) != 0:
            return
    T: tl.constexpr = tl.float64 if P.is_fp64() else tl.float32
    i_tensor = find(p_table, n_tensors, trips, i_block)
    fields = table_fields(p_table + i_tensor, n_tensors, 14)
    first, a_p, a_g, a_m, a_v, a_step, numel, row_length, local, whole, offset, first_row, index, aligned = fields

    n, cycle, k = phase(tl.load(a_step.to(tl.pointer_type(tl.float32))), reset_interval)
    arguments = (lr, decay, weight_decay, beta1, rest1, log1, beta2, rest2, log2, eps, threshold, warmup_angle)
    b_lr, b_decay, b_weight_decay, beta1, rest1, log1, beta2, rest2, log2, eps, threshold, angle = numbers_of(arguments, T)
    if p_lr is not None:
        b_lr = tl.load(p_lr).to(T)
        b_decay = tl.fma(-b_lr, b_weight_decay, tl.cast(1.0, T))
    size = step_size(b_lr, n, cycle, k, log1, log2, angle, warmup_steps, CYCLE_CORRECTION)
    rates = (beta1, rest1, beta2, rest2, eps, threshold, size, b_decay)
    switches = ((k != 0) | (cycle == 0), (threshold > 0.0) & (k >= unclipped_steps))
    scale = None if p_grad_scale is None else tl.load(p_grad_scale).to(T)

    i_row, column, start, left, o = _tile((i_block - first).to(tl.int64), numel, row_length, BLOCK, MASK)
    place, counters = (local, whole, offset), (n, index, key0, key1)
    draw = (cycle, index, key0, key1, p_combinations, n_combinations)
    start_m, o_m, drawn, touched = start, o, True, True
    if MASK == ROW:
        start_m, drawn, row_drawn = _draw_row(i_row, column, row_length, first_row, chosen, draw, o)
        touched = row_drawn | (weight_decay != 0) | (p_grad_scale is not None)
    if MASK == ELEMENT:
        start_m, o_m, drawn = _draw_elements(start, place, chosen, draw, BLOCK)
    if touched:
        addresses, starts = (a_p, a_g, a_m, a_v), (start, start_m)
        if (aligned != 0) & (left >= BLOCK):
            _update(
                addresses, starts, o, o_m, left, drawn, rates, switches, scale, place, counters,
                P, G, M, MAXIMIZE, FREEZE, True, BLOCK,
            )  # fmt: skip
        else:
            _update(
                addresses, starts, o, o_m, left, drawn, rates, switches, scale, place, counters,
                P, G, M, MAXIMIZE, FREEZE, False, BLOCK,
            )  # fmt: skip
