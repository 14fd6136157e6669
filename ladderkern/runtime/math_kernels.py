# ruff: noqa: RUF005 - Triton compiles a subset of Python
"""What the Triton kernels of every feature share: exact division and roots, rounding, exp and log, arguments, rows."""

from __future__ import annotations

import math

import triton
import triton.language as tl

_FACTORIAL_RECIPROCAL = tl.constexpr(tuple(1.0 / math.factorial(i) for i in range(8)))
_ODD_RECIPROCAL = tl.constexpr(tuple(1.0 / (2 * i + 1) for i in range(18)))


@triton.jit
def divide(x, y):
    """x / y, rounded to nearest (plain ``/`` is approximate in float32)."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def sqrt(x):
    """sqrt(x), rounded to nearest (plain ``tl.sqrt`` is approximate and flushes subnormals in float32)."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def exp(x):
    """exp(x) for x <= 88, within two roundings: 2^n times the series of the rest, which is at most log(2) / 2.

    Plain ``tl.exp`` is 2^(x log2(e)) on a GPU: of x = -64 it loses six bits, in the rounding of that product.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = tl.maximum(x, -104.0, propagate_nan=tl.PropagateNan.ALL)  # below the smallest number
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        r = (x - n * 0.693359375) - n * -2.12194440e-4  # log(2) in two parts: the first product is exact
        q = r * _FACTORIAL_RECIPROCAL[7] + _FACTORIAL_RECIPROCAL[6]
        for i in tl.static_range(5, 1, -1):
            q = q * r + _FACTORIAL_RECIPROCAL[i]
        return ((q * (r * r) + r) + 1.0) * tl.exp2(n)


@triton.jit
def log1p(x):
    """log(1 + x) for -1/2 <= x <= 1, within two roundings: 2 artanh(x / (2 + x)) by its series.

    ``tl.log(1.0 + x)`` would lose the digits of a small x twice: in the sum, and in the approximate logarithm near 1.
    """
    s = divide(x, x + 2.0)  # |s| <= 1/3: each term is 1/9 of the one before
    square = s * s
    N: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    q = square * _ODD_RECIPROCAL[N] + _ODD_RECIPROCAL[N - 1]
    for i in tl.static_range(N - 2, 0, -1):
        q = q * square + _ODD_RECIPROCAL[i]
    return s * 2.0 + s * 2.0 * (square * q)


@triton.jit
def round_stochastically(x, noise):
    """float -> bfloat16: 16 bits of ``noise`` are added below the last bit that stays. As ``spam.reference`` does it."""
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    rounded = tl.where(size < 0x7F800000, bits + noise, bits)
    rounded = tl.where(size > 0x7F800000, bits | 0x400000, rounded)
    return (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rounded(x, D: tl.constexpr):
    """x to nearest in D, ties to even. By hand for bfloat16: the interpreter's own conversion cuts off."""
    if D.is_bf16():
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        return round_stochastically(x, 0x7FFF + ((bits >> 16) & 1))
    else:
        return x.to(D)


@triton.jit
def numbers_of(arguments, T: tl.constexpr):
    """Scalar arguments in the arithmetic dtype: floats, or the bits of doubles, for which a launch has no argument type."""
    numbers = ()
    for i in tl.static_range(len(arguments)):
        if T.is_fp64():
            numbers = numbers + (tl.cast(tl.cast(arguments[i], tl.int64), T, bitcast=True),)
        else:
            numbers = numbers + (tl.cast(arguments[i], T),)
    return numbers


@triton.jit
def row(p, i_row, stride, ALIGN: tl.constexpr):
    """Pointer to a row of a tensor.  ALIGN: what the address of every row is a multiple of, in bytes."""
    # The hint is on the offset, since the AMD compiler forgets hints on pointers; the tensor's own address the launch tells.
    return p + tl.multiple_of(i_row * stride, ALIGN * 8 // p.dtype.element_ty.primitive_bitwidth)


@triton.jit
def everywhere(flag, like):
    """A scalar flag as a mask of the shape of ``like``: the interpreter cannot ``&`` a mask and a scalar."""
    return tl.broadcast_to(flag.to(tl.int32), like.shape) != 0
