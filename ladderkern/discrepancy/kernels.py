"""Token discrepancy in Triton, alone and with cross-entropy: one launch forward, one backward, one row a program.

Formulas and cases are those of ``reference.py``. Sizes of vocabulary and codebook are constants: a model has one of each.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.dtypes import wide
from ..runtime.launch import double_bits, on_device, power_of_two
from ..runtime.math_kernels import divide, numbers_of, rounded, row
from .reference import TABLE
from .row_kernels import (
    block_counts,
    distances,
    image_softmax,
    load_wide,
    row_kind,
    saved_top,
    store_zeros,
    text_gradient,
    text_start,
    whole_softmax,
)

_STRIDES = ["stride_logits", "stride_labels", "stride_grad", "stride_grad_image"]
_NUMBERS = ["offset", "scale", "smoothing", "target", "share", "ignore_index"]

# ---------------------------------------------------------------------------------------------------- discrepancy alone


@triton.jit(do_not_specialize=["stride_logits", "stride_labels", "offset", "scale"])
def _discrepancy_fwd(
    p_logits, p_labels, p_table, p_loss, p_top, p_total, stride_logits, stride_labels, offset, scale,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """loss = sum_j softmax(x)_j D[y, j] over the image columns x; top = max x, total = sum exp(x - top); 0 if skipped.

    Reads the image columns and one row of the table: 4 bytes an element with bf16 logits and a 16-bit table (the least
    possible), 2 with a codebook, which stays in cache. Skipped rows read their label alone.
    """
    W: tl.constexpr = p_loss.dtype.element_ty
    offset, scale = numbers_of((offset, scale), W)
    i_row = tl.program_id(0).to(tl.int64)
    code = tl.load(p_labels + i_row * stride_labels) - IMAGE_START
    loss, top, total = tl.full([], 0.0, W), tl.full([], 0.0, W), tl.full([], 0.0, W)
    if (code >= 0) & (code < N_CODES):
        p_x = row(p_logits, i_row, stride_logits, ALIGN) + IMAGE_START
        m, total, loss = image_softmax(p_x, p_table, code, offset, scale, N_CODES, METRIC, DIM, W, BLOCK)
        top = saved_top(m, total)
    tl.store(p_loss + i_row, loss)
    tl.store(p_top + i_row, top)
    tl.store(p_total + i_row, total)


@triton.jit(do_not_specialize=["stride_logits", "stride_labels", "stride_grad", "offset", "scale"])
def _discrepancy_bwd(
    p_grad, p_logits, p_labels, p_table, p_loss, p_top, p_total, p_grad_logits, stride_grad, stride_logits, stride_labels,
    offset, scale,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_j = go p_j (D[y, j] - loss), p = exp(x - top) / total, on the image columns; 0 on all others and in skipped rows.

    Reads the image columns and one row of the table, writes the whole row once: with bf16 logits and a 16-bit table 6 bytes
    an image column and 2 a text column (the least possible).
    """
    W: tl.constexpr = p_loss.dtype.element_ty
    D: tl.constexpr = p_grad_logits.dtype.element_ty
    offset, scale = numbers_of((offset, scale), W)
    i_row = tl.program_id(0).to(tl.int64)
    code = tl.load(p_labels + i_row * stride_labels) - IMAGE_START
    p_out = p_grad_logits + i_row * N_COLUMNS
    if (code >= 0) & (code < N_CODES):
        p_x = row(p_logits, i_row, stride_logits, ALIGN) + IMAGE_START
        loss, top = tl.load(p_loss + i_row), tl.load(p_top + i_row)
        grad = divide(tl.load(p_grad + i_row * stride_grad), tl.load(p_total + i_row))
        for start in range(0, N_CODES, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m_o = o < N_CODES
            b_e = tl.exp(load_wide(p_x, o, m_o, W) - top)
            b_d = distances(p_table, code, o, m_o, offset, scale, N_CODES, METRIC, DIM, W)
            tl.store(p_out + IMAGE_START + o, rounded(b_e * grad * (b_d - loss), D), mask=m_o)
        store_zeros(p_out, 0, IMAGE_START, BLOCK)
        store_zeros(p_out, IMAGE_START + N_CODES, N_COLUMNS, BLOCK)
    else:
        store_zeros(p_out, 0, N_COLUMNS, BLOCK)


# --------------------------------------------------------------------------------------------------- with cross-entropy


@triton.jit(do_not_specialize=["stride_logits", "stride_labels", *_NUMBERS])
def _joint_fwd(
    p_logits, p_labels, p_table, p_cross_entropy, p_discrepancy, p_top, p_total, p_image_top, p_image_total,
    stride_logits, stride_labels, offset, scale, smoothing, share, ignore_index,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    SMOOTH: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """cross_entropy = -(1 - eps) log p_y - eps mean_j log p_j over all columns, discrepancy as in ``_discrepancy_fwd``.

    Reads the row once, and for an image row one row of the table: 2 bytes a column and 2 a code where both are 16-bit (the
    least possible). Rows that count in neither read their label alone.
    """
    W: tl.constexpr = p_total.dtype.element_ty
    offset, scale, smoothing, share = numbers_of((offset, scale, smoothing, share), W)
    i_row = tl.program_id(0).to(tl.int64)
    label, code, counted, image = row_kind(p_labels, i_row, stride_labels, ignore_index, IMAGE_START, N_CODES)
    cross_entropy, discrepancy = tl.full([], 0.0, W), tl.full([], 0.0, W)
    top, total, image_top, image_total = cross_entropy, cross_entropy, cross_entropy, cross_entropy
    if counted | image:
        p_x = row(p_logits, i_row, stride_logits, ALIGN)
        inside = (label >= 0) & (label < N_COLUMNS)
        x_y = tl.load(p_x + label, mask=inside, other=0.0).to(W)
        middle = tl.where(tl.abs(x_y) <= 65504.0, x_y, 0.0)  # sums of x - middle keep their digits under a common offset
        m, total_m, image_m, image_total_m, loss, beside = whole_softmax(
            p_x, p_table, code, counted, image, middle, offset, scale,
            IMAGE_START, N_CODES, N_COLUMNS, METRIC, DIM, SMOOTH, W, BLOCK,
        )  # fmt: skip
        if image:
            discrepancy, image_top, image_total = loss, saved_top(image_m, image_total_m), image_total_m
        if counted:
            cross_entropy, total = m - x_y + tl.log(total_m), tl.where(inside, total_m, float("nan"))
            if SMOOTH:
                beside = share * beside - smoothing * (x_y - middle)
                cross_entropy = tl.where(x_y == float("-inf"), cross_entropy, cross_entropy - beside)
            cross_entropy, top = tl.where(inside, cross_entropy, float("nan")), saved_top(m, total)
    tl.store(p_cross_entropy + i_row, cross_entropy)
    tl.store(p_discrepancy + i_row, discrepancy)
    tl.store(p_top + i_row, top)
    tl.store(p_total + i_row, total)
    tl.store(p_image_top + i_row, image_top)
    tl.store(p_image_total + i_row, image_total)


@triton.jit(do_not_specialize=[*_STRIDES, *_NUMBERS])
def _joint_bwd(
    p_grad, p_grad_image, p_logits, p_labels, p_table, p_discrepancy, p_top, p_total, p_image_top, p_image_total, p_grad_logits,
    stride_grad, stride_grad_image, stride_logits, stride_labels, offset, scale, target, share, ignore_index,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_j = gce (softmax_j - (1 - eps) [j = y] - eps / V) + gd p_j (D[y, j] - discrepancy), p over the image columns.

    Each softmax is exp(x - its top) / its total. Reads the row, and for an image row one row of the table; writes the row: 4
    bytes a column and 2 a code where all are 16-bit (the least possible). Rows that count in neither are a store of zeros.
    """
    W: tl.constexpr = p_total.dtype.element_ty
    D: tl.constexpr = p_grad_logits.dtype.element_ty
    offset, scale, target, share = numbers_of((offset, scale, target, share), W)
    i_row = tl.program_id(0).to(tl.int64)
    label, code, counted, image = row_kind(p_labels, i_row, stride_labels, ignore_index, IMAGE_START, N_CODES)
    p_out = p_grad_logits + i_row * N_COLUMNS
    if counted | image:
        p_x = row(p_logits, i_row, stride_logits, ALIGN)
        grad, grad_image = tl.load(p_grad + i_row * stride_grad), tl.load(p_grad_image + i_row * stride_grad_image)
        loss, top, image_top = tl.load(p_discrepancy + i_row), tl.load(p_top + i_row), tl.load(p_image_top + i_row)
        norm = divide(tl.full([], 1.0, W), tl.load(p_total + i_row))
        grad_image = divide(grad_image, tl.load(p_image_total + i_row))
        n_text, last = block_counts(True, image, IMAGE_START, N_CODES, N_COLUMNS, BLOCK)
        for i_block in range(n_text):
            o = text_start(i_block, image, IMAGE_START, N_CODES, BLOCK) + tl.arange(0, BLOCK)
            m_o = o < N_COLUMNS
            b_x = load_wide(p_x, o, m_o, W)
            b_g = text_gradient(b_x, o, label, counted, grad, top, norm, target, share)
            tl.store(p_out + o, rounded(b_g, D), mask=m_o)
        for start in range(IMAGE_START // BLOCK * BLOCK, last, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m_o = o < N_COLUMNS
            m_image = (o >= IMAGE_START) & (o < IMAGE_START + N_CODES)
            b_x = load_wide(p_x, o, m_o, W)
            b_g = text_gradient(b_x, o, label, counted, grad, top, norm, target, share)
            b_d = distances(p_table, code, o - IMAGE_START, m_image, offset, scale, N_CODES, METRIC, DIM, W)
            b_g += tl.where(m_image, tl.exp(b_x - image_top) * grad_image * (b_d - loss), 0.0)
            tl.store(p_out + o, rounded(b_g, D), mask=m_o)
    else:
        store_zeros(p_out, 0, N_COLUMNS, BLOCK)


# ---------------------------------------------------------------------------------------------------------- the launchers


def _sizes(logits: Tensor, table: Tensor, options: dict) -> dict:
    """The compile-time constants that all four kernels share."""
    return {
        "IMAGE_START": options["image_start"],
        "N_CODES": table.shape[0],
        "METRIC": options["metric"],
        "DIM": table.shape[1] if options["metric"] != TABLE else 0,
        "ALIGN": math.gcd(16, logits.data_ptr(), logits.stride(0) * logits.element_size()),
        "enable_fp_fusion": False,
    }


def _blocks(columns: int, most: int, logits: Tensor, options: dict) -> dict:
    """Columns at a time, and warps: 8 columns a thread, 4 if logits are wider or codes compared, 16 in the longest blocks."""
    codes, double = options["metric"] != TABLE, logits.dtype == torch.float64
    block = power_of_two(columns, 64, 1024 if codes else min(most, 2048) if double else most)
    lanes = (4 if codes or logits.element_size() > 2 else 8) * (64 if torch.version.hip else 32)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // lanes))}


def _numbers(logits: Tensor, *values: float) -> tuple[float, ...] | tuple[int, ...]:
    """Scalars as ``numbers_of`` reads them."""
    return tuple(double_bits(x) for x in values) if logits.dtype == torch.float64 else values


def _rows(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.empty((logits.shape[0],), dtype=wide(logits.dtype), device=logits.device) for _ in range(count))


def token_discrepancy(logits: Tensor, labels: Tensor, table: Tensor, **options) -> tuple[Tensor, ...]:
    """The op ``token_discrepancy`` (see ``ops.py``): one launch."""
    rows = _rows(logits, 3)
    if logits.shape[0]:
        with on_device(logits.device):
            _discrepancy_fwd[(logits.shape[0],)](
                logits, labels, table, *rows, logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"]),
                **_sizes(logits, table, options), **_blocks(table.shape[0], 8192, logits, options),
            )  # fmt: skip
    return rows


def token_discrepancy_backward(
    grad_output: Tensor, logits: Tensor, labels: Tensor, table: Tensor, *rows: Tensor, **options
) -> Tensor:
    """The op ``token_discrepancy_backward``: one launch, which writes every element of the gradient."""
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.shape[0]:
        with on_device(logits.device):
            _discrepancy_bwd[(logits.shape[0],)](
                grad_output, logits, labels, table, *(t.contiguous() for t in rows), grad_logits,
                grad_output.stride(0), logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"]), N_COLUMNS=logits.shape[1],
                **_sizes(logits, table, options), **_blocks(table.shape[0], 8192, logits, options),
            )  # fmt: skip
    return grad_logits


def cross_entropy_discrepancy(
    logits: Tensor, labels: Tensor, table: Tensor, *, ignore_index: int, label_smoothing: float, **options
) -> tuple[Tensor, ...]:
    """The op ``cross_entropy_discrepancy``: one launch."""
    rows = _rows(logits, 6)
    if logits.shape[0]:
        V = logits.shape[1]
        with on_device(logits.device):
            _joint_fwd[(logits.shape[0],)](
                logits, labels, table, *rows, logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"], label_smoothing, label_smoothing / V),
                ignore_index, N_COLUMNS=V, SMOOTH=label_smoothing > 0.0,
                **_sizes(logits, table, options), **_blocks(V, 2048, logits, options),
            )  # fmt: skip
    return rows


def cross_entropy_discrepancy_backward(
    grad_cross_entropy: Tensor, grad_discrepancy: Tensor, logits: Tensor, labels: Tensor, table: Tensor, *rows: Tensor,
    ignore_index: int, label_smoothing: float, **options,
) -> Tensor:  # fmt: skip
    """The op ``cross_entropy_discrepancy_backward``: one launch, which writes every element of the gradient."""
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.shape[0]:
        V, share = logits.shape[1], label_smoothing / logits.shape[1]
        with on_device(logits.device):
            _joint_bwd[(logits.shape[0],)](
                grad_cross_entropy, grad_discrepancy, logits, labels, table, *(t.contiguous() for t in rows), grad_logits,
                grad_cross_entropy.stride(0), grad_discrepancy.stride(0), logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"], 1.0 - label_smoothing + share, share),
                ignore_index, N_COLUMNS=V,
                **_sizes(logits, table, options), **_blocks(V, 2048, logits, options),
            )  # fmt: skip
    return grad_logits
