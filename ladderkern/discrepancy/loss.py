"""MVoT's token discrepancy loss, alone and joined with cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..runtime import backend, eager
from .chameleon import warn_if_masked
from .linear import WholeVocabulary, linear_rows
from .ops import CROSS_ENTROPY_DISCREPANCY, TOKEN_DISCREPANCY, check_discrepancy, check_joint
from .parallel import ShardedLoss, VocabularyShard, group_of
from .reference import image_codes
from .rows import check_options, check_vocabulary, positions_of, reduce, rows_of
from .table import DistanceTable


class JointLoss(NamedTuple):
    """What the joint losses return with ``return_parts=True``; the parts are detached.

    >>> ladderkern.discrepancy.JointLoss._fields
    ('loss', 'cross_entropy', 'discrepancy')
    """

    loss: Tensor
    cross_entropy: Tensor
    discrepancy: Tensor


def token_discrepancy_loss(
    logits: Tensor,
    labels: Tensor,
    table: DistanceTable,
    *,
    image_start: int = 4,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    shift: int = 0,
    group: Any = None,
) -> Tensor:
    """How far off in embedding space the predicted image tokens are: E_{j ~ p} D[label, j].

    p is the softmax over the N image columns alone, so text columns are free. The expectation is the exact 1-Wasserstein
    distance between p and the label under D. Text labels, padding and -100 are skipped: loss 0, gradient exactly 0,
    whatever their logits hold. The logits are never written.

    Args:
        logits: [..., V], float32, bfloat16, float16 or float64; any distance between rows.
        labels: [...], integers: the target of each position.
        table: distances of the tokenizer's N codes, on the device of the logits.
        image_start: column of code 0 in the logits (Chameleon, Anole: 4).
        reduction: ``"mean"`` over image tokens (0 with a graph when there are none), ``"sum"`` (the paper) or ``"none"``.
        normalizer: what "mean" divides by instead of the count: a number or 0-dim tensor, such as the image tokens of all
            accumulation steps and ranks. 0 is allowed where nothing is counted.
        shift: 1 if labels are not yet shifted (position t predicts label t + 1; "none" then has one entry fewer).
        group: process group over which the vocabulary is sharded, consecutive parts in rank order, of any width; labels and
            the result are the same on every rank, and each rank gets the gradient of its columns. Plain PyTorch.

    Returns:
        A scalar, or [...] for "none"; float32, float64 for float64 logits. Differentiable once, in logits.

    Raises:
        TypeError, ValueError: naming the argument. BackendUnavailable: see :func:`ladderkern.backend`.

    Warns on CPU (on a device with LADDERKERN_CHECK=1), once a table, about image columns that are all equal: current
    transformers mask Chameleon's image logits, which makes this loss silently useless.

    Source: Li et al. 2025 (MVoT, arXiv 2501.07542), section 3; the published code is metric "euclidean" with "mean".

    >>> table = ladderkern.DistanceTable(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))  # 2 codes
    >>> logits = torch.arange(6.0).repeat(3, 1)  # columns 4 and 5 are the codes
    >>> ladderkern.token_discrepancy_loss(logits, torch.tensor([1, 4, 5]), table)
    tensor(6.2500)
    """
    check_options(table, reduction, shift, normalizer=normalizer)
    x, y = rows_of(logits, labels, shift, -1, "logits")
    options = {**table.options, "image_start": image_start}
    group = group_of(group)
    # Before the op, so that what counting takes is free again when the op allocates: 16 bytes a row are needed in all.
    targets = positions_of(y, labels.shape, shift)
    image = (targets >= image_start) & (targets < image_start + table.num_codes)
    if group is None:
        check_discrepancy(x, y, table.data, **options)
        warn_if_masked(x, y, table, image_start, stacklevel=3)
        losses = eager.call(TOKEN_DISCREPANCY, backend.select(TOKEN_DISCREPANCY, x), x, y, table.data, **options)[0]
    else:
        shard = VocabularyShard(group, table.data, options, joint=False)
        _, losses = ShardedLoss.apply(x, y, shard, shard.place(x.shape[1], y))
    losses = positions_of(losses, labels.shape, shift)
    return reduce(losses, image, reduction, normalizer)


def cross_entropy_with_discrepancy(
    logits: Tensor,
    labels: Tensor,
    table: DistanceTable,
    *,
    image_start: int = 4,
    weight: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    ce_normalizer: float | Tensor | None = None,
    normalizer: float | Tensor | None = None,
    shift: int = 0,
    group: Any = None,
    return_parts: bool = False,
) -> Tensor | JointLoss:
    """Cross-entropy over all columns plus ``weight`` x token discrepancy over the image columns, in one pass over the logits.

    Each term has its own mean: the cross-entropy over labels that are not ``ignore_index``, the discrepancy over image
    tokens. One gradient buffer serves both.

    Args:
        logits, labels, table, image_start, reduction, shift, group: as for :func:`token_discrepancy_loss`.
        weight: of the discrepancy (the paper and its code: 1).
        label_smoothing: in [0, 1], as in ``torch.nn.functional.cross_entropy`` (the published code trains with 0.1).
        ignore_index: label that the cross-entropy skips.
        ce_normalizer, normalizer: replace the count of the cross-entropy and of the discrepancy (only with "mean").
        return_parts: return a :class:`JointLoss` (loss, cross_entropy, discrepancy), the last two detached.

    Returns:
        A scalar, or [...] for "none"; float32, float64 for float64 logits. If all rows are ignored 0 with a graph, where
        ``F.cross_entropy`` gives NaN. Differentiable once, in logits.

    Raises:
        TypeError, ValueError: naming the argument. IndexError: on CPU, a label outside [0, V) that is not ignore_index (on a
        device and under torch.compile that row's loss is NaN).

    >>> table = ladderkern.DistanceTable(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))  # 2 codes
    >>> logits = torch.arange(6.0).repeat(3, 1)
    >>> parts = ladderkern.cross_entropy_with_discrepancy(logits, torch.tensor([1, 4, 5]), table, return_parts=True)
    >>> [round(part.item(), 3) for part in parts]
    [8.373, 2.123, 6.25]
    """
    options = {"image_start": image_start, "ignore_index": ignore_index, "label_smoothing": float(label_smoothing)}
    means = {"reduction": reduction, "ce_normalizer": ce_normalizer, "normalizer": normalizer}
    return _joint(logits, labels, table, _rows_of_logits, options, means, weight, shift, group, return_parts)


def linear_cross_entropy_with_discrepancy(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    table: DistanceTable,
    *,
    image_start: int = 4,
    weight: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    ce_normalizer: float | Tensor | None = None,
    normalizer: float | Tensor | None = None,
    shift: int = 0,
    group: Any = None,
    return_parts: bool = False,
) -> Tensor | JointLoss:
    """:func:`cross_entropy_with_discrepancy` of ``hidden @ lm_head_weight.T``, whose logits never exist as a whole.

    Tokens are taken in chunks, and the backward computes each chunk's logits again. The gradient of the weight accumulates in
    float32. A frozen head or frozen hidden states skip their gradient.

    Args:
        hidden: [..., H], what the language model's head gets. Under autocast both operands are cast to its dtype.
        lm_head_weight: [V, H], whole: gather it first where it is sharded other than by ``group``.
        group: as above, ``lm_head_weight`` [V of this rank, H] being this rank's rows and ``hidden`` the same on every rank;
            the gradient of ``hidden`` is summed over the group.

    Other arguments, returns and errors are those of :func:`cross_entropy_with_discrepancy`.

    >>> table = ladderkern.DistanceTable(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))  # 2 codes
    >>> hidden, head = torch.zeros(3, 8), torch.ones(6, 8)
    >>> loss = ladderkern.linear_cross_entropy_with_discrepancy(hidden, head, torch.tensor([1, 4, 5]), table)
    >>> round(loss.item(), 3)
    8.042
    """

    def rows_of_hidden(h: Tensor, y: Tensor, table: DistanceTable, options: dict[str, Any], group: Any) -> Any:
        vocabulary = WholeVocabulary if group is None else VocabularyShard
        return linear_rows(h, lm_head_weight, y, vocabulary(group, table.data, options, joint=True))

    options = {"image_start": image_start, "ignore_index": ignore_index, "label_smoothing": float(label_smoothing)}
    means = {"reduction": reduction, "ce_normalizer": ce_normalizer, "normalizer": normalizer}
    return _joint(hidden, labels, table, rows_of_hidden, options, means, weight, shift, group, return_parts)


def _rows_of_logits(x: Tensor, y: Tensor, table: DistanceTable, options: dict[str, Any], group: Any) -> tuple[Tensor, Tensor]:
    if group is not None:
        shard = VocabularyShard(group, table.data, options, joint=True)
        return ShardedLoss.apply(x, y, shard, shard.place(x.shape[1], y))
    check_joint(x, y, table.data, **options)
    check_vocabulary(y, x.shape[1], options["ignore_index"])
    warn_if_masked(x, y, table, options["image_start"], stacklevel=5)
    return eager.call(CROSS_ENTROPY_DISCREPANCY, backend.select(CROSS_ENTROPY_DISCREPANCY, x), x, y, table.data, **options)[:2]


def _joint(
    values: Tensor,
    labels: Tensor,
    table: DistanceTable,
    rows: Callable[..., tuple[Tensor, Tensor]],
    options: dict[str, Any],
    means: dict[str, Any],
    weight: float,
    shift: int,
    group: Any,
    return_parts: bool,
) -> Tensor | JointLoss:
    """What both joint forms do around ``rows``, which gives the two terms of each row."""
    check_options(table, shift=shift, **means)
    reduction = means["reduction"]
    name = "logits" if rows is _rows_of_logits else "hidden"
    x, y = rows_of(values, labels, shift, options["ignore_index"], name)
    terms = rows(x, y, table, {**table.options, **options}, group_of(group))
    cross_entropy, discrepancy, y = (positions_of(t, labels.shape, shift) for t in (*terms, y))
    _, image = image_codes(y, options["image_start"], table.num_codes)
    cross_entropy = reduce(cross_entropy, y != options["ignore_index"], reduction, means["ce_normalizer"])
    discrepancy = reduce(discrepancy, image, reduction, means["normalizer"])
    loss = cross_entropy + weight * discrepancy
    return JointLoss(loss, cross_entropy.detach(), discrepancy.detach()) if return_parts else loss
