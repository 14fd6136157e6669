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

TABLE = 0  # the value of ``metric`` that says: the table holds distances, not codes
METRICS = {"mse": 1, "sqeuclidean": 2, "euclidean": 3}


def wide(dtype: torch.dtype) -> torch.dtype:
    """dtype of all arithmetic on logits of ``dtype``, and of everything that is returned for a row."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def token_discrepancy(
    logits: Tensor, labels: Tensor, table: Tensor, *, metric: int, offset: float, scale: float, image_start: int
) -> tuple[Tensor, Tensor]:
    """Per row: loss = sum_j p_j D[y, j], p the softmax over the image columns, and their logsumexp; 0 in skipped rows.

    Returns (loss, lse).  [T], [T], float32 (float64 for float64 logits)
    """
    num_codes = table.shape[0]
    codes, image = image_codes(labels, image_start, num_codes)
    x = image_logits(logits, image, image_start, num_codes)
    distances = distance_rows(codes, table, metric, offset, scale, x.dtype)
    loss = (torch.softmax(x, dim=1) * distances).sum(dim=1)
    return torch.where(image, loss, 0.0), torch.where(image, torch.logsumexp(x, dim=1), 0.0)


def token_discrepancy_backward(
    grad_output: Tensor,
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    loss: Tensor,
    lse: Tensor,
    *,
    metric: int,
    offset: float,
    scale: float,
    image_start: int,
) -> Tensor:
    """grad_j = grad_output * p_j (D[y, j] - loss) on the image columns, 0 elsewhere and in skipped rows.  [T, V]

    The softmax is taken anew, not as exp(x - lse): a rounding of lse is as large as the logits' common offset makes it.
    """
    num_codes = table.shape[0]
    codes, image = image_codes(labels, image_start, num_codes)
    x = image_logits(logits, image, image_start, num_codes)
    distances = distance_rows(codes, table, metric, offset, scale, x.dtype)
    gradient = grad_output[:, None] * torch.softmax(x, dim=1) * (distances - loss[:, None])
    gradient = torch.where(image[:, None], gradient, 0.0).to(logits.dtype)
    return F.pad(gradient, (image_start, logits.shape[1] - image_start - num_codes))


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cross-entropy over all columns, -(1 - eps) log p_y - eps mean_j log p_j, and the discrepancy over the image columns.

    Returns (cross_entropy, discrepancy, lse over all columns, image_lse); cross_entropy and lse are 0 in ignored rows.  4 x [T]
    """
    x = text_logits(logits, labels, ignore_index)
    log_p = torch.log_softmax(x, dim=1)
    target = labels.clamp(0, logits.shape[1] - 1)[:, None]
    cross_entropy = -(1.0 - label_smoothing) * log_p.gather(1, target).squeeze(1)
    if label_smoothing > 0:  # else a column of -inf would make 0 * inf
        cross_entropy = cross_entropy - label_smoothing * log_p.mean(dim=1)
    ignored = labels == ignore_index
    discrepancy, image_lse = token_discrepancy(
        logits, labels, table, metric=metric, offset=offset, scale=scale, image_start=image_start
    )
    lse = torch.where(ignored, 0.0, torch.logsumexp(x, dim=1))
    return torch.where(ignored, 0.0, cross_entropy), discrepancy, lse, image_lse


def cross_entropy_discrepancy_backward(
    grad_cross_entropy: Tensor,
    grad_discrepancy: Tensor,
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    discrepancy: Tensor,
    lse: Tensor,
    image_lse: Tensor,
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
    gradient = grad_cross_entropy[:, None] * (torch.softmax(x, dim=1) - wanted)
    gradient = torch.where((labels == ignore_index)[:, None], 0.0, gradient)

    num_codes = table.shape[0]
    codes, image = image_codes(labels, image_start, num_codes)
    x = image_logits(logits, image, image_start, num_codes)
    distances = distance_rows(codes, table, metric, offset, scale, x.dtype)
    part = grad_discrepancy[:, None] * torch.softmax(x, dim=1) * (distances - discrepancy[:, None])
    gradient[:, image_start : image_start + num_codes] += torch.where(image[:, None], part, 0.0)
    return gradient.to(logits.dtype)
