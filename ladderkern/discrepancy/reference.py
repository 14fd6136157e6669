"""Token discrepancy in plain PyTorch: the law that every backend must match.

Li et al. 2025, "Imagine while Reasoning in Space: Multimodal Visualization-of-Thought" (MVoT, arXiv 2501.07542), section 3:
with S[y] the distances of code y to all N codes of the image tokenizer, and P the prediction over the image tokens,

    L_D = sum over the image tokens t of  S[y_t] . P(t),      dL_D/dx_j = p_j (S[y, j] - S[y] . p).

Nothing here reads a device value on the host, and nothing has a shape that depends on one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.dtypes import wide

TABLE = 0  # the value of ``metric`` that says: the table holds distances, not codes
METRICS = {"mse": 1, "sqeuclidean": 2, "euclidean": 3}


def image_codes(labels: Tensor, image_start: int, num_codes: int) -> tuple[Tensor, Tensor]:
    """(code, whether the row has one): label - image_start where that is a code, else code 0.  [T] int64, [T] bool"""
    codes = labels - image_start
    image = (codes >= 0) & (codes < num_codes)
    return torch.where(image, codes, 0), image


def code_distances(codes: Tensor, codebook: Tensor, metric: int) -> Tensor:
    """Distances of some code vectors [T, d] to all of the codebook [N, d], from differences, in float64.  [T, N]"""
    euclidean = torch.cdist(codes.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if metric == METRICS["euclidean"]:
        return euclidean
    return euclidean**2 / (codebook.shape[1] if metric == METRICS["mse"] else 1)


def distance_rows(
    codes: Tensor,
    table: Tensor,
    metric: int,
    offset: float,
    scale: float,
    dtype: torch.dtype,
    columns: Tensor | None = None,
) -> Tensor:
    """D[codes], the distances of each label's code to all codes (or to ``columns``), exactly 0 to itself.  [T, N]

    ``metric`` TABLE: ``table`` [N, N] holds (D - offset) / scale. Else it is the codebook [N, d].
    """
    if metric == TABLE:
        stored = table[codes] if columns is None else table[codes[:, None], columns]
        rows = stored.to(dtype) * scale + offset
    else:
        rows = code_distances(table[codes], table if columns is None else table[columns], metric).to(dtype)
    if columns is None:
        columns = torch.arange(table.shape[0], device=table.device)
    return torch.where(codes[:, None] == columns, 0.0, rows)


def image_logits(logits: Tensor, image: Tensor, image_start: int, num_codes: int) -> Tensor:
    """The image columns in wide precision; 0 in skipped rows, so that what those hold reaches no result.  [T, N]"""
    columns = logits[:, image_start : image_start + num_codes].to(wide(logits.dtype))
    return torch.where(image[:, None], columns, 0.0)


def exponentials(x: Tensor, top: Tensor) -> Tensor:
    """exp(x - top), top the largest of each row; 0 in a row of nothing but -inf.  [T, N], [T] -> [T, N]"""
    return torch.exp(x - torch.where(top == float("-inf"), 0.0, top)[:, None])


def exact_sum(x: Tensor) -> Tensor:
    """Sum of each row in float64, so that it is its terms alone that are rounded.  [T, N] -> [T] float64"""
    return x.sum(dim=1, dtype=torch.float64)


def token_discrepancy(
    logits: Tensor, labels: Tensor, table: Tensor, *, metric: int, offset: float, scale: float, image_start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: loss = sum_j p_j D[y, j], p = exp(x - top) / total the softmax over the image columns; 0 in skipped rows.

    A backward gets the pair (top, total), not the logsumexp: one rounding of that, as large as a common offset of the logits
    makes it, would be an error of every p.

    Returns (loss, top, total).  3 x [T], float32 (float64 for float64 logits)
    """
    num_codes = table.shape[0]
    codes, image = image_codes(labels, image_start, num_codes)
    x = image_logits(logits, image, image_start, num_codes)
    top = x.detach().amax(dim=1)
    e = exponentials(x, top)
    total = exact_sum(e)
    distances = distance_rows(codes, table, metric, offset, scale, x.dtype)
    loss = exact_sum(e * distances) / total
    # Again with what the first sum lost: gradients are differences from the loss.
    loss = loss + exact_sum(e * (distances - loss[:, None])) / total
    loss, top, total = (torch.where(image, t, 0.0).to(x.dtype) for t in (loss, top, total))
    return loss, top, total


def token_discrepancy_backward(
    grad_output: Tensor,
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    loss: Tensor,
    top: Tensor,
    total: Tensor,
    *,
    metric: int,
    offset: float,
    scale: float,
    image_start: int,
) -> Tensor:
    """grad_j = grad_output * p_j (D[y, j] - loss) on the image columns, 0 elsewhere and in skipped rows.  [T, V]"""
    num_codes = table.shape[0]
    codes, image = image_codes(labels, image_start, num_codes)
    x = image_logits(logits, image, image_start, num_codes)
    distances = distance_rows(codes, table, metric, offset, scale, x.dtype)
    p = exponentials(x, top) / total[:, None]
    gradient = torch.where(image[:, None], grad_output[:, None] * p * (distances - loss[:, None]), 0.0)
    return F.pad(gradient.to(logits.dtype), (image_start, logits.shape[1] - image_start - num_codes))


def text_logits(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """All columns in wide precision; 0 in ignored rows, NaN in rows whose label is outside the vocabulary.  [T, V]"""
    ignored = labels == ignore_index
    outside = ((labels < 0) | (labels >= logits.shape[1])) & ~ignored
    x = torch.where(ignored[:, None], 0.0, logits.to(wide(logits.dtype)))
    return x + torch.where(outside, float("nan"), 0.0).to(x.dtype)[:, None]


def cross_entropy_discrepancy(
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    *,
    metric: int,
    offset: float,
    scale: float,
    image_start: int,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy over all columns, -(1 - eps) log p_y - eps mean_j log p_j, and the discrepancy over the image columns.

    Returns (cross_entropy, discrepancy, top, total, image_top, image_total): the pairs of all and of the image columns;
    cross_entropy, top and total are 0 in ignored rows.  6 x [T]
    """
    x = text_logits(logits, labels, ignore_index)
    top = x.detach().amax(dim=1)
    total = exact_sum(exponentials(x, top))
    target = labels.clamp(0, logits.shape[1] - 1)[:, None]
    own = x.gather(1, target).squeeze(1).double() - top  # of differences alone: a common offset has no part in the loss
    cross_entropy = total.log() - (1.0 - label_smoothing) * own
    if label_smoothing > 0:  # else a column of -inf would make 0 * inf
        cross_entropy = cross_entropy - label_smoothing * exact_sum(x - top[:, None]) / logits.shape[1]
    ignored = labels == ignore_index
    cross_entropy, top, total = (torch.where(ignored, 0.0, t).to(x.dtype) for t in (cross_entropy, top, total))
    discrepancy, image_top, image_total = token_discrepancy(
        logits, labels, table, metric=metric, offset=offset, scale=scale, image_start=image_start
    )
    return cross_entropy, discrepancy, top, total, image_top, image_total


def cross_entropy_discrepancy_backward(
    grad_cross_entropy: Tensor,
    grad_discrepancy: Tensor,
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    discrepancy: Tensor,
    top: Tensor,
    total: Tensor,
    image_top: Tensor,
    image_total: Tensor,
    *,
    metric: int,
    offset: float,
    scale: float,
    image_start: int,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """gce (softmax_j - (1 - eps) [j = y] - eps / V), and on image columns + gd p_j (D[y, j] - discrepancy).  [T, V]"""
    x = text_logits(logits, labels, ignore_index)
    V = logits.shape[1]
    target = labels.clamp(0, V - 1)[:, None] == torch.arange(V, device=labels.device)
    wanted = torch.full_like(x, label_smoothing / V).masked_fill_(target, 1.0 - label_smoothing + label_smoothing / V)
    p = exponentials(x, top) / total[:, None]
    gradient = grad_cross_entropy[:, None] * (p - wanted)
    gradient = torch.where((labels == ignore_index)[:, None], 0.0, gradient)

    num_codes = table.shape[0]
    codes, image = image_codes(labels, image_start, num_codes)
    x = image_logits(logits, image, image_start, num_codes)
    distances = distance_rows(codes, table, metric, offset, scale, x.dtype)
    p = exponentials(x, image_top) / image_total[:, None]
    part = grad_discrepancy[:, None] * p * (distances - discrepancy[:, None])
    gradient[:, image_start : image_start + num_codes] += torch.where(image[:, None], part, 0.0)
    return gradient.to(logits.dtype)
