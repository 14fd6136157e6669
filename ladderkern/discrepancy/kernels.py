"""Token discrepancy in Triton, alone and with cross-entropy: one launch forward, one backward, one row a program.

Formulas and cases are those of ``reference.py``. Sizes of vocabulary and codebook are constants: a model has one of each.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime.launch import double_bits, on_device, power_of_two
from ..spam.formula_kernels import numbers_of, rounded
from . import ops
from .reference import TABLE, wide
from .row_kernels import (
    block_counts,
    distances,
    image_softmax,
    load_wide,
    row_kind,
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
    p_logits, p_labels, p_table, p_loss, p_lse, stride_logits, stride_labels, offset, scale,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """loss = sum_j softmax(x)_j D[y, j] over the image columns x; lse = logsumexp(x); 0 and 0 in skipped rows.

    Reads the image columns and one row of the table: 4 bytes an element with bf16 logits and a 16-bit table (the least
    possible), 2 with a codebook, which stays in cache. Skipped rows read their label alone.
    """
    W: tl.constexpr = p_loss.dtype.element_ty
    offset, scale = numbers_of((offset, scale), W)
    i_row = tl.program_id(0).to(tl.int64)
    code = tl.load(p_labels + i_row * stride_labels) - IMAGE_START
    if (code >= 0) & (code < N_CODES):
        p_x = tl.multiple_of(p_logits + i_row * stride_logits, ALIGN) + IMAGE_START
        m, total, loss = image_softmax(p_x, p_table, code, offset, scale, N_CODES, METRIC, DIM, True, W, BLOCK)
        tl.store(p_loss + i_row, loss)
        tl.store(p_lse + i_row, m + tl.log(total))
    else:
        tl.store(p_loss + i_row, 0.0)
        tl.store(p_lse + i_row, 0.0)


@triton.jit(do_not_specialize=["stride_logits", "stride_labels", "stride_grad", "offset", "scale"])
def _discrepancy_bwd(
    p_grad, p_logits, p_labels, p_table, p_loss, p_grad_logits, stride_grad, stride_logits, stride_labels, offset, scale,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_j = go p_j (D[y, j] - loss) on the image columns; 0 on all others and in skipped rows.

    Reads the image columns and one row of the table, writes the whole row once: with bf16 logits and a 16-bit table 6 bytes
    an image column (the least possible) and 2 a text column. The softmax is taken anew, not as exp(x - lse): a rounding of
    lse is as large as the logits' common offset makes it. A row longer than BLOCK is read twice, the second time from cache.
    """
    W: tl.constexpr = p_loss.dtype.element_ty
    D: tl.constexpr = p_grad_logits.dtype.element_ty
    offset, scale = numbers_of((offset, scale), W)
    i_row = tl.program_id(0).to(tl.int64)
    code = tl.load(p_labels + i_row * stride_labels) - IMAGE_START
    p_out = p_grad_logits + i_row * N_COLUMNS
    if (code >= 0) & (code < N_CODES):
        p_x = tl.multiple_of(p_logits + i_row * stride_logits, ALIGN) + IMAGE_START
        grad, loss = tl.load(p_grad + i_row * stride_grad), tl.load(p_loss + i_row)
        m, total, _ = image_softmax(p_x, p_table, code, offset, scale, N_CODES, METRIC, DIM, False, W, BLOCK)
        grad = grad / total
        for start in range(0, N_CODES, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m_o = o < N_CODES
            b_e = tl.exp(load_wide(p_x, o, m_o, W) - m)
            b_d = distances(p_table, code, o, m_o, offset, scale, N_CODES, METRIC, DIM, W)
            tl.store(p_out + IMAGE_START + o, rounded(b_e * grad * (b_d - loss), D), mask=m_o)
        store_zeros(p_out, 0, IMAGE_START, BLOCK)
        store_zeros(p_out, IMAGE_START + N_CODES, N_COLUMNS, BLOCK)
    else:
        store_zeros(p_out, 0, N_COLUMNS, BLOCK)


# --------------------------------------------------------------------------------------------------- with cross-entropy


@triton.jit(do_not_specialize=["stride_logits", "stride_labels", *_NUMBERS])
def _joint_fwd(
    p_logits, p_labels, p_table, p_cross_entropy, p_discrepancy, p_lse, p_image_lse, stride_logits, stride_labels,
    offset, scale, smoothing, share, ignore_index,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    SMOOTH: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """cross_entropy = -(1 - eps) log p_y - eps mean_j log p_j over all columns, discrepancy as in ``_discrepancy_fwd``.

    Reads the row once, and for an image row one row of the table: 2 bytes a column and 2 a code where both are 16-bit (the
    least possible). Rows that count in neither read their label alone.
    """
    W: tl.constexpr = p_lse.dtype.element_ty
    offset, scale, smoothing, share = numbers_of((offset, scale, smoothing, share), W)
    i_row = tl.program_id(0).to(tl.int64)
    label, code, counted, image = row_kind(p_labels, i_row, stride_labels, ignore_index, IMAGE_START, N_CODES)
    cross_entropy, discrepancy = tl.full([], 0.0, W), tl.full([], 0.0, W)
    lse, image_lse = tl.full([], 0.0, W), tl.full([], 0.0, W)
    if counted | image:
        p_x = tl.multiple_of(p_logits + i_row * stride_logits, ALIGN)
        inside = (label >= 0) & (label < N_COLUMNS)
        x_y = tl.load(p_x + label, mask=inside, other=0.0).to(W)
        middle = tl.where(tl.abs(x_y) <= 65504.0, x_y, 0.0)  # sums of x - middle keep their digits under a common offset
        m, total, image_m, image_total, loss, beside = whole_softmax(
            p_x, p_table, code, counted, image, middle, offset, scale,
            IMAGE_START, N_CODES, N_COLUMNS, METRIC, DIM, True, SMOOTH, W, BLOCK,
        )  # fmt: skip
        if image:
            discrepancy, image_lse = loss, image_m + tl.log(image_total)
        if counted:
            cross_entropy, lse = m - x_y + tl.log(total), m + tl.log(total)
            if SMOOTH:
                beside = share * beside - smoothing * (x_y - middle)
                cross_entropy = tl.where(x_y == float("-inf"), cross_entropy, cross_entropy - beside)
            cross_entropy = tl.where(inside, cross_entropy, float("nan"))
            lse = tl.where(inside, lse, float("nan"))
    tl.store(p_cross_entropy + i_row, cross_entropy)
    tl.store(p_discrepancy + i_row, discrepancy)
    tl.store(p_lse + i_row, lse)
    tl.store(p_image_lse + i_row, image_lse)


@triton.jit(do_not_specialize=[*_STRIDES, *_NUMBERS])
def _joint_bwd(
    p_grad, p_grad_image, p_logits, p_labels, p_table, p_discrepancy, p_lse, p_image_lse, p_grad_logits,
    stride_grad, stride_grad_image, stride_logits, stride_labels, offset, scale, target, share, ignore_index,
    IMAGE_START: tl.constexpr, N_CODES: tl.constexpr, N_COLUMNS: tl.constexpr, METRIC: tl.constexpr, DIM: tl.constexpr,
    FAR: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_j = gce (softmax_j - (1 - eps) [j = y] - eps / V) + gd p_j (D[y, j] - discrepancy), p over the image columns.

    Reads the row, and for an image row one row of the table; writes the row: 4 bytes a column and 2 a code where all are
    16-bit (the least possible). The softmaxes are exp(x - lse) unless lse is FAR from 0: then its rounding would show in the
    gradient's dtype, and the row is read twice (in float32 always). Rows that count in neither are a store of zeros.
    """
    W: tl.constexpr = p_lse.dtype.element_ty
    D: tl.constexpr = p_grad_logits.dtype.element_ty
    offset, scale, target, share = numbers_of((offset, scale, target, share), W)
    i_row = tl.program_id(0).to(tl.int64)
    label, code, counted, image = row_kind(p_labels, i_row, stride_labels, ignore_index, IMAGE_START, N_CODES)
    p_out = p_grad_logits + i_row * N_COLUMNS
    if counted | image:
        p_x = tl.multiple_of(p_logits + i_row * stride_logits, ALIGN)
        grad, grad_image = tl.load(p_grad + i_row * stride_grad), tl.load(p_grad_image + i_row * stride_grad_image)
        loss, m, image_m = tl.load(p_discrepancy + i_row), tl.load(p_lse + i_row), tl.load(p_image_lse + i_row)
        norm, image_norm = tl.full([], 1.0, W), tl.full([], 1.0, W)
        if tl.maximum(tl.abs(m), tl.abs(image_m)) > FAR:
            m, norm, image_m, image_norm, _, _ = whole_softmax(
                p_x, p_table, code, counted, image, m, offset, scale,
                IMAGE_START, N_CODES, N_COLUMNS, METRIC, DIM, False, False, W, BLOCK,
            )  # fmt: skip
            norm, image_norm = 1.0 / norm, 1.0 / image_norm
        n_text, last = block_counts(True, image, IMAGE_START, N_CODES, N_COLUMNS, BLOCK)
        for i_block in range(n_text):
            o = text_start(i_block, image, IMAGE_START, N_CODES, BLOCK) + tl.arange(0, BLOCK)
            m_o = o < N_COLUMNS
            b_x = load_wide(p_x, o, m_o, W)
            b_g = text_gradient(b_x, o, label, counted, grad, m, norm, target, share)
            tl.store(p_out + o, rounded(b_g, D), mask=m_o)
        for start in range(IMAGE_START // BLOCK * BLOCK, last, BLOCK):
            o = start + tl.arange(0, BLOCK)
            m_o = o < N_COLUMNS
            m_image = (o >= IMAGE_START) & (o < IMAGE_START + N_CODES)
            b_x = load_wide(p_x, o, m_o, W)
            b_g = text_gradient(b_x, o, label, counted, grad, m, norm, target, share)
            b_d = distances(p_table, code, o - IMAGE_START, m_image, offset, scale, N_CODES, METRIC, DIM, W)
            b_p = tl.exp(b_x - image_m) * image_norm
            b_g += tl.where(m_image, grad_image * b_p * (b_d - loss), 0.0)
            tl.store(p_out + o, rounded(b_g, D), mask=m_o)
    else:
        store_zeros(p_out, 0, N_COLUMNS, BLOCK)


# ---------------------------------------------------------------------------------------------------------- the launchers

# From which |lse| on its rounding, an error of 2^-24 |lse| in the softmax, is over a quarter of eps of the gradient's dtype.
_FAR = {torch.float32: 0.0, torch.float64: 0.0, torch.float16: 4096.0, torch.bfloat16: 32768.0}


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
    """Columns at a time, and warps: 8 columns a thread, 4 of float64 or where codes are compared, 16 in the longest blocks."""
    codes, double = options["metric"] != TABLE, logits.dtype == torch.float64
    block = power_of_two(columns, 64, 1024 if codes else min(most, 2048) if double else most)
    lanes = (4 if codes or double else 8) * (64 if torch.version.hip else 32)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // lanes))}


def _numbers(logits: Tensor, *values: float) -> tuple[float, ...] | tuple[int, ...]:
    """Scalars as ``numbers_of`` reads them."""
    return tuple(double_bits(x) for x in values) if logits.dtype == torch.float64 else values


def _rows(logits: Tensor) -> Tensor:
    return torch.empty((logits.shape[0],), dtype=wide(logits.dtype), device=logits.device)


def token_discrepancy(logits: Tensor, labels: Tensor, table: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The op ``token_discrepancy`` (see ``ops.py``): one launch."""
    ops.check_discrepancy(logits, labels, table, **options)
    loss, lse = _rows(logits), _rows(logits)
    if logits.shape[0]:
        with on_device(logits.device):
            _discrepancy_fwd[(logits.shape[0],)](
                logits, labels, table, loss, lse, logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"]),
                **_sizes(logits, table, options), **_blocks(table.shape[0], 8192, logits, options),
            )  # fmt: skip
    return loss, lse


def token_discrepancy_backward(
    grad_output: Tensor, logits: Tensor, labels: Tensor, table: Tensor, loss: Tensor, lse: Tensor, **options
) -> Tensor:
    """The op ``token_discrepancy_backward``: one launch, which writes every element of the gradient."""
    ops.check_discrepancy_backward(grad_output, logits, labels, table, loss, lse, **options)
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.shape[0]:
        with on_device(logits.device):
            _discrepancy_bwd[(logits.shape[0],)](
                grad_output, logits, labels, table, loss.contiguous(), grad_logits,
                grad_output.stride(0), logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"]), N_COLUMNS=logits.shape[1],
                **_sizes(logits, table, options), **_blocks(table.shape[0], 8192, logits, options),
            )  # fmt: skip
    return grad_logits


def cross_entropy_discrepancy(
    logits: Tensor, labels: Tensor, table: Tensor, *, ignore_index: int, label_smoothing: float, **options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op ``cross_entropy_discrepancy``: one launch."""
    ops.check_joint(logits, labels, table, ignore_index=ignore_index, label_smoothing=label_smoothing, **options)
    rows = tuple(_rows(logits) for _ in range(4))
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
    grad_cross_entropy: Tensor, grad_discrepancy: Tensor, logits: Tensor, labels: Tensor, table: Tensor,
    discrepancy: Tensor, lse: Tensor, image_lse: Tensor, *, ignore_index: int, label_smoothing: float, **options,
) -> Tensor:  # fmt: skip
    """The op ``cross_entropy_discrepancy_backward``: one launch, which writes every element of the gradient."""
    ops.check_joint_backward(
        grad_cross_entropy, grad_discrepancy, logits, labels, table, discrepancy, lse, image_lse,
        ignore_index=ignore_index, label_smoothing=label_smoothing, **options,
    )  # fmt: skip
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.shape[0]:
        V, share = logits.shape[1], label_smoothing / logits.shape[1]
        with on_device(logits.device):
            _joint_bwd[(logits.shape[0],)](
                grad_cross_entropy, grad_discrepancy, logits, labels, table,
                discrepancy.contiguous(), lse.contiguous(), image_lse.contiguous(), grad_logits,
                grad_cross_entropy.stride(0), grad_discrepancy.stride(0), logits.stride(0), labels.stride(0),
                *_numbers(logits, options["offset"], options["scale"], 1.0 - label_smoothing + share, share),
                ignore_index, N_COLUMNS=V, FAR=_FAR[logits.dtype],
                **_sizes(logits, table, options), **_blocks(V, 2048, logits, options),
            )  # fmt: skip
    return grad_logits
