# ruff: noqa: RUF005, SIM108 - Triton compiles a subset of Python
"""The formulas of ``reference.py`` for use inside Triton kernels: schedule, random numbers, masks, places."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from ..runtime.math_kernels import divide, sqrt

_INVERSE_FACTORIAL = tl.constexpr(tuple(1.0 / math.factorial(i) for i in range(22)))

# ------------------------------------------------------------------------------------------------ scalars of the schedule


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, as ``reference.expm1``."""
    x = tl.where(x < -80.0, -80.0, x)
    y = x * 1.4426950408889634
    if x.dtype == tl.float64:
        n = (y + 6755399441055744.0) - 6755399441055744.0  # to the nearest integer, ties to even
        scale = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        n = (y + 12582912.0) - 12582912.0
        scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    r = (x - n * 0.693359375) - n * -2.12194440054690583e-4
    q = r * _INVERSE_FACTORIAL[14] + _INVERSE_FACTORIAL[13]
    for i in tl.static_range(12, 0, -1):
        q = q * r + _INVERSE_FACTORIAL[i]
    return scale * (q * r) + (scale - 1.0)


@triton.jit
def sine(x):
    """sin(x) on [0, pi/2], as ``reference.sine``."""
    square = x * x
    q = _INVERSE_FACTORIAL[19] - square * _INVERSE_FACTORIAL[21]
    for i in tl.static_range(17, 0, -2):
        q = _INVERSE_FACTORIAL[i] - q * square
    return q * x


@triton.jit
def phase(step, reset_interval):
    """(n, cycle, k) of the step after ``step``, as ``reference.phase``.  ``step`` counts exactly to 2^24: int32 is enough."""
    n = (step + 1.0).to(tl.int32)
    interval = tl.cast(reset_interval, tl.int32)
    cycle = tl.where(interval == 0, 0, n // tl.maximum(interval, 1))
    return n, cycle, n - cycle * interval


@triton.jit
def step_size(lr, n, cycle, k, log1, log2, warmup_angle, warmup_steps, CYCLE_CORRECTION: tl.constexpr):
    """lr * s(k) * sqrt(1 - beta2^t) / (1 - beta1^t), as ``reference.step_scalars``."""
    t = tl.where(cycle > 0, k + 1, n) if CYCLE_CORRECTION else n
    t = t.to(log1.dtype)
    root = sine(tl.minimum(k, warmup_steps).to(log1.dtype) * warmup_angle)
    warm = tl.where((cycle > 0) & (k < warmup_steps), 0.01 + 0.99 * (root * root), 1.0)
    return divide(lr * warm * sqrt(-expm1(t * log2)), -expm1(t * log1))


# ------------------------------------------------------------------------------------------- counter-based random numbers


@triton.jit
def random_word(position, last, index, key0, key1):
    """Word position % 4 of the Philox4x32-10 block position // 4, as ``reference.random_words``.  int64 -> uint32"""
    block = position >> 2
    seed = (key1.to(tl.uint32).to(tl.uint64) << 32) | key0.to(tl.uint32).to(tl.uint64)
    words = tl.philox(seed, block.to(tl.uint32), (block >> 32).to(tl.uint32), last.to(tl.uint32), index.to(tl.uint32))
    i_word = position & 3
    return tl.where(i_word < 2, tl.where(i_word == 0, words[0], words[1]), tl.where(i_word == 2, words[2], words[3]))


@triton.jit
def stratum_bits(stratum, cycle, index, key0, key1, p_combinations, n_combinations):
    """Bit j: whether the stratum draws its j-th element, as ``reference.stratum_mask``.  int64 [...] -> int32 [...]"""
    word = random_word(stratum, cycle, index, key0, key1)
    rank = tl.umulhi(word, word * 0 + tl.cast(n_combinations, tl.int32).to(tl.uint32))
    return tl.load(p_combinations + rank.to(tl.int32)).to(tl.int32)


@triton.jit
def bits_below(bits, j):
    """How many of the bits 0..j-1 are set."""
    x = bits & ((1 << j) - 1)
    x = x - ((x >> 1) & 0x5555)
    x = (x & 0x3333) + ((x >> 2) & 0x3333)
    x = (x + (x >> 4)) & 0x0F0F
    return (x + (x >> 8)) & 0x1F


# ----------------------------------------------------------------------------------------------------- where elements lie


@triton.jit
def position(start, o, local, whole, offset, BLOCK: tl.constexpr):
    """Place in the whole parameter of elements start + o of a shard (0 <= o < BLOCK), as ``reference.global_position``.

    One 64-bit division for the block; within it 32 bits or one comparison are enough.
    """
    rest = start % local + o
    if local >= BLOCK:
        turns = (rest >= local).to(tl.int64)
    else:
        turns = (rest.to(tl.int32) // local.to(tl.int32)).to(tl.int64)
    return (start // local + turns) * whole + offset + rest - turns * local


# ---------------------------------------------------------------------------------------------- arguments and their table


@triton.jit
def find(p_first, n_tensors, trips, i_block):
    """The tensor whose blocks include block ``i_block``: the last one whose first block is not after it."""
    low = i_block * 0
    high = low + n_tensors
    for _ in range(trips):
        middle = (low + high) // 2
        right = tl.load(p_first + middle) <= i_block
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    return low


@triton.jit
def table_fields(p_row, n_tensors, N: tl.constexpr):
    """The N fields of one tensor, in the order of ``_make_table``."""
    fields = ()
    for i in tl.static_range(N):
        fields = fields + (tl.load(p_row + i * n_tensors),)
    return fields
