"""Residual addition and RMS norm in Triton: one launch forward; backward one, and one that adds up the weight gradients.

Formulas and cases are those of ``reference.py``. The hidden size is a constant: a model has one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.dtypes import wide
from ..runtime.launch import double_bits, on_device, power_of_two
from ..runtime.math_kernels import divide, numbers_of, rounded, row, sqrt

# ------------------------------------------------------------------------------------------------------------------ forward


@triton.jit
def _load_row(p, i_row, stride, o, m, ALIGN: tl.constexpr, W: tl.constexpr):
    """Elements ``o`` of a row where ``m``, else 0.  ALIGN: what the address of every row is a multiple of, in bytes."""
    return tl.load(row(p, i_row, stride, ALIGN) + o, mask=m, other=0.0).to(W)


@triton.jit
def _load_stream(
    p_x, p_update, p_update2, i_row, stride_x, stride_update, stride_update2, o, m,
    ROUND: tl.constexpr, ALIGN: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """x + update + update2, each sum rounded to the dtype of x if ROUND."""
    X: tl.constexpr = p_x.dtype.element_ty
    b_s = _load_row(p_x, i_row, stride_x, o, m, ALIGN, W)
    if p_update is not None:
        b_s += _load_row(p_update, i_row, stride_update, o, m, ALIGN, W)
    if p_update2 is not None:
        b_s = rounded(b_s, X).to(W) if ROUND else b_s
        b_s += _load_row(p_update2, i_row, stride_update2, o, m, ALIGN, W)
    return rounded(b_s, X).to(W) if ROUND else b_s


@triton.jit
def _reciprocal_rms(b_squares, eps, HIDDEN: tl.constexpr):
    mean = divide(tl.sum(b_squares, axis=0), tl.cast(HIDDEN, eps.dtype))
    return divide(tl.cast(1.0, eps.dtype), sqrt(mean + eps))


@triton.jit
def _store_normed(p_normed, p_weight, o, m, b_xhat, X: tl.constexpr, ROUND: tl.constexpr, W: tl.constexpr):
    """weight * xhat, with xhat rounded to X first if ROUND."""
    if ROUND:
        b_xhat = rounded(b_xhat, X).to(W)
    b_weight = tl.load(p_weight + o, mask=m, other=0.0).to(W)
    tl.store(p_normed + o, rounded(b_weight * b_xhat, p_normed.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["stride_x", "stride_update", "stride_update2", "eps"])
def _rms_norm_fwd(
    p_x, p_update, p_update2, p_weight, p_weight2, p_normed, p_normed2, p_stream, p_rstd,
    stride_x, stride_update, stride_update2, eps,
    HIDDEN: tl.constexpr, ROUND: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """stream = x + update + update2; normed = weight * stream * rstd, rstd = 1 / sqrt(mean(stream^2) + eps).

    Reads x and each addend, writes stream and each normed: in bf16 8 bytes an element with one addend and one weight, 4 of
    the norm alone (the least possible). A row longer than BLOCK is read twice, the second time from cache.
    """
    W: tl.constexpr = p_rstd.dtype.element_ty
    X: tl.constexpr = p_x.dtype.element_ty
    (eps,) = numbers_of((eps,), W)
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    b_s, b_squares = tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
    for start in range(0, HIDDEN, BLOCK):
        m = start + o < HIDDEN
        b_s = _load_stream(
            p_x, p_update, p_update2, i_row, stride_x, stride_update, stride_update2, start + o, m, ROUND, ALIGN, W
        )  # fmt: skip
        if p_stream is not None:
            tl.store(p_stream + i_row * HIDDEN + start + o, rounded(b_s, X), mask=m)
        b_squares += b_s * b_s
    rstd = _reciprocal_rms(b_squares, eps, HIDDEN)
    tl.store(p_rstd + i_row, rstd)
    for start in range(0, HIDDEN, BLOCK):
        m = start + o < HIDDEN
        if HIDDEN > BLOCK:  # else the row is still in registers
            b_s = _load_stream(
                p_x, p_update, p_update2, i_row, stride_x, stride_update, stride_update2, start + o, m, ROUND, ALIGN, W
            )  # fmt: skip
        _store_normed(p_normed + i_row * HIDDEN, p_weight, start + o, m, b_s * rstd, X, ROUND, W)
        if p_weight2 is not None:
            _store_normed(p_normed2 + i_row * HIDDEN, p_weight2, start + o, m, b_s * rstd, X, ROUND, W)


# ----------------------------------------------------------------------------------------------------------------- backward


@triton.jit
def _load_gradients(
    p_grad, p_grad2, p_stream, p_weight, p_weight2, p_rstd, i_row, stride_grad, stride_grad2, stride_stream, o, m,
    ALIGN: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """(grad, grad2, xhat, weight * grad + weight2 * grad2, rstd) of a row; grad2 is grad where there is no weight2."""
    b_grad = _load_row(p_grad, i_row, stride_grad, o, m, ALIGN, W)
    b_grad2 = b_grad
    b_xhat = _load_row(p_stream, i_row, stride_stream, o, m, ALIGN, W)
    b_scaled = b_grad * tl.load(p_weight + o, mask=m, other=0.0).to(W)
    if p_weight2 is not None:
        b_grad2 = _load_row(p_grad2, i_row, stride_grad2, o, m, ALIGN, W)
        b_scaled += b_grad2 * tl.load(p_weight2 + o, mask=m, other=0.0).to(W)
    rstd = tl.load(p_rstd + i_row)
    return b_grad, b_grad2, b_xhat * rstd, b_scaled, rstd


@triton.jit(do_not_specialize=["stride_grad", "stride_grad2", "stride_grad_stream", "stride_stream", "n_rows"])
def _rms_norm_bwd(
    p_grad, p_grad2, p_grad_stream, p_stream, p_weight, p_weight2, p_rstd, p_grad_x, p_partial, p_partial2,
    stride_grad, stride_grad2, stride_grad_stream, stride_stream, n_rows,
    HIDDEN: tl.constexpr, ROWS: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_x = grad_stream + rstd (w g - xhat mean(w g xhat)); partial weight gradient sum g xhat of the program's ROWS rows.

    Reads stream and the gradients, writes grad_x: in bf16 8 bytes an element with one weight, 6 of the norm alone (the least
    possible), and 4 / ROWS of partial sums. Rows longer than BLOCK are read twice, the second time from cache.
    """
    W: tl.constexpr = p_rstd.dtype.element_ty
    X: tl.constexpr = p_grad_x.dtype.element_ty
    i_block = tl.program_id(0).to(tl.int64)
    first = i_block * ROWS
    n = tl.minimum(n_rows - first, ROWS).to(tl.int32)
    hidden = tl.cast(HIDDEN, W)
    o = tl.arange(0, BLOCK)
    if HIDDEN > BLOCK:
        o_row, b_means = tl.arange(0, ROWS), tl.zeros([ROWS], W)
        for i in range(n):
            i_row = first + i
            b_product = tl.zeros([BLOCK], W)
            for start in range(0, HIDDEN, BLOCK):
                _, _, b_xhat, b_scaled, _ = _load_gradients(
                    p_grad, p_grad2, p_stream, p_weight, p_weight2, p_rstd, i_row, stride_grad, stride_grad2, stride_stream,
                    start + o, start + o < HIDDEN, ALIGN, W,
                )  # fmt: skip
                b_product += b_scaled * b_xhat
            b_means = tl.where(o_row == i, divide(tl.sum(b_product, axis=0), hidden), b_means)
    for start in range(0, HIDDEN, BLOCK):
        o_col = start + o
        m = o_col < HIDDEN
        b_partial, b_partial2 = tl.zeros([BLOCK], W), tl.zeros([BLOCK], W)
        for i in range(n):
            i_row = first + i
            b_grad, b_grad2, b_xhat, b_scaled, rstd = _load_gradients(
                p_grad, p_grad2, p_stream, p_weight, p_weight2, p_rstd, i_row, stride_grad, stride_grad2, stride_stream,
                o_col, m, ALIGN, W,
            )  # fmt: skip
            b_out = tl.zeros([BLOCK], W)
            if p_grad_stream is not None:
                b_out = _load_row(p_grad_stream, i_row, stride_grad_stream, o_col, m, ALIGN, W)
            if HIDDEN > BLOCK:
                mean = tl.sum(tl.where(o_row == i, b_means, 0.0), axis=0)
            else:
                mean = divide(tl.sum(b_scaled * b_xhat, axis=0), hidden)
            b_out += rstd * (b_scaled - b_xhat * mean)
            tl.store(p_grad_x + i_row * HIDDEN + o_col, rounded(b_out, X), mask=m)
            b_partial += b_grad * b_xhat
            b_partial2 += b_grad2 * b_xhat
        tl.store(p_partial + i_block * HIDDEN + o_col, b_partial, mask=m)
        if p_partial2 is not None:
            tl.store(p_partial2 + i_block * HIDDEN + o_col, b_partial2, mask=m)


@triton.jit(do_not_specialize=["n_blocks"])
def _sum_partials(p_partials, p_out, p_out2, n_blocks, HIDDEN: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """out = sum over blocks of partials [2, n_blocks, HIDDEN], the second of them to out2. The order is fixed by the shape."""
    W: tl.constexpr = p_partials.dtype.element_ty
    D: tl.constexpr = p_out.dtype.element_ty
    o_col = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    m_col = o_col < HIDDEN
    p_partial = p_partials + tl.program_id(1).to(tl.int64) * n_blocks * HIDDEN + o_col
    b_sum = tl.zeros([BLOCK_B, BLOCK_H], W)
    for start in range(0, n_blocks, BLOCK_B):
        o_block = start + tl.arange(0, BLOCK_B)[:, None]
        b_sum += tl.load(p_partial + o_block.to(tl.int64) * HIDDEN, mask=(o_block < n_blocks) & m_col, other=0.0)
    b_out = rounded(tl.sum(b_sum, axis=0)[None, :], D)
    if tl.program_id(1) == 0:
        tl.store(p_out + o_col, b_out, mask=m_col)
    else:
        tl.store(p_out2 + o_col, b_out, mask=m_col)


# ----------------------------------------------------------------------------------------------------------- the launchers


def _blocks(hidden: int, most: int, columns: int) -> dict[str, int]:
    """Columns at a time, at most so many, and warps: so many columns a thread."""
    block = power_of_two(hidden, 64, most)
    lanes, warps = (64, 16) if torch.version.hip else (32, 32)
    return {"BLOCK": block, "num_warps": max(1, min(warps, block // (columns * lanes)))}


def _forward_blocks(hidden: int, dtype: torch.dtype) -> dict[str, int]:
    return _blocks(hidden, 8192, 8) if dtype == torch.float64 else _blocks(hidden, 16384, 16)


def _backward_blocks(hidden: int, dtype: torch.dtype, weights: int) -> dict[str, int]:
    """What fits into registers without spilling, with one weight or two."""
    if dtype == torch.float64:
        return _blocks(hidden, 2048, 4)
    return _blocks(hidden, 8192, 16) if weights == 1 else _blocks(hidden, 4096, 8)


def _row_block(rows: int, wide_rows: bool, num_warps: int) -> int:
    """Rows whose weight gradients one program adds up: about 2048 warps in all, which one wave of programs can be.

    A program keeps one number for each of its rows where these are read twice, so it has at most 64 of them then.
    """
    return power_of_two(-(-rows * num_warps // 2048), 1, 64 if wide_rows else 2**20)


def _align(*rows: Tensor | None) -> int:
    """What the address of every row is a multiple of, at most 16 bytes."""
    given = [t for t in rows if t is not None]
    return math.gcd(16, *(t.data_ptr() for t in given), *(t.stride(0) * t.element_size() for t in given))


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


def _forward(x, update, update2, weight, weight2, eps, round_sum, keep_stream: bool):
    """(normed, normed2, stream, rstd), one launch; None for what is not asked for."""
    rows, hidden = x.shape
    normed = torch.empty((rows, hidden), dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    normed2 = None if weight2 is None else torch.empty_like(normed)
    stream = torch.empty((rows, hidden), dtype=x.dtype, device=x.device) if keep_stream else None
    rstd = torch.empty((rows,), dtype=wide(x.dtype), device=x.device)
    if rows:
        with on_device(x.device):
            _rms_norm_fwd[(rows,)](
                x, update, update2, weight, weight2, normed, normed2, stream, rstd,
                x.stride(0), _stride(update), _stride(update2), double_bits(eps) if x.dtype == torch.float64 else eps,
                HIDDEN=hidden, ROUND=round_sum, ALIGN=_align(x, update, update2), **_forward_blocks(hidden, x.dtype),
                enable_fp_fusion=False,
            )  # fmt: skip
    return normed, normed2, stream, rstd


def _backward(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd):
    """(grad_x, grad_weight, grad_weight2 or None), two launches."""
    rows, hidden = stream.shape
    grad_x = torch.empty((rows, hidden), dtype=stream.dtype, device=stream.device)
    if not rows:
        return grad_x, torch.zeros_like(weight), None if weight2 is None else torch.zeros_like(weight)
    grad_weight, grad_weight2 = torch.empty_like(weight), None if weight2 is None else torch.empty_like(weight)
    blocks = _backward_blocks(hidden, stream.dtype, 1 if weight2 is None else 2)
    row_block = _row_block(rows, hidden > blocks["BLOCK"], blocks["num_warps"])
    n_blocks, n_weights = triton.cdiv(rows, row_block), 1 if weight2 is None else 2
    partials = torch.empty((n_weights, n_blocks, hidden), dtype=rstd.dtype, device=stream.device)
    with on_device(stream.device):
        _rms_norm_bwd[(n_blocks,)](
            grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd, grad_x,
            partials[0], None if weight2 is None else partials[1],
            grad_normed.stride(0), _stride(grad_normed2), _stride(grad_stream), stream.stride(0), rows,
            HIDDEN=hidden, ROWS=row_block, ALIGN=_align(grad_normed, grad_normed2, grad_stream, stream), **blocks,
            enable_fp_fusion=False,
        )  # fmt: skip
        _sum_partials[(triton.cdiv(hidden, 32), n_weights)](
            partials, grad_weight, grad_weight if weight2 is None else grad_weight2, n_blocks, HIDDEN=hidden,
            BLOCK_B=power_of_two(n_blocks, 16, 128), BLOCK_H=32, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
    return grad_x, grad_weight, grad_weight2


def add_rms_norm(
    x: Tensor, update: Tensor | None, update2: Tensor | None, weight: Tensor, weight2: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op ``add_rms_norm`` (see ``ops.py``): one launch."""
    normed, normed2, stream, rstd = _forward(x, update, update2, weight, weight2, **options, keep_stream=True)
    return normed, normed.new_empty((0,)) if normed2 is None else normed2, stream, rstd


def add_rms_norm_backward(
    grad_normed: Tensor, grad_normed2: Tensor, grad_stream: Tensor, stream: Tensor, weight: Tensor, weight2: Tensor | None,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op ``add_rms_norm_backward``: two launches."""
    second = None if weight2 is None else grad_normed2
    grad_x, grad_weight, grad_weight2 = _backward(grad_normed, second, grad_stream, stream, weight, weight2, rstd)
    return grad_x, grad_weight, grad_weight.new_empty((0,)) if grad_weight2 is None else grad_weight2


def rms_norm(x: Tensor, weight: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The op ``rms_norm``: one launch."""
    normed, _, _, rstd = _forward(x, None, None, weight, None, **options, keep_stream=False)
    return normed, rstd


def rms_norm_backward(grad_normed: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The op ``rms_norm_backward``: two launches."""
    grad_x, grad_weight, _ = _backward(grad_normed, None, None, x, weight, None, rstd)
    return grad_x, grad_weight
