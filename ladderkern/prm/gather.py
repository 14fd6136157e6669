"""From tokens to steps: what a model gives at every token, packed into rows at the steps alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..runtime.checks import check_integers, values_readable
from .ops import check_offsets


def gather_steps(
    logits: Tensor,
    mask: Tensor,
    num_steps: int | None = None,
    *,
    columns: tuple[int, int] | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pack the steps of padded or packed tokens, for :func:`score_steps`. Also for hidden states, before the head.

    Args:
        logits: [B, T, C] of every token, or [B, T] of a scalar head; any dtype and strides. Packed tokens: [T, C] or [T].
        mask: [B, T] bool, where the steps are read; padding on either side, rows without steps allowed. Packed: [T].
        num_steps: how many steps there are in all. Given, nothing synchronises and torch.compile sees fixed shapes. A wrong
            number is an error on CPU (on a device with LADDERKERN_CHECK=1); else steps beyond it are cut, and rows beyond the
            true number are NaN and belong to no response.
        columns: (negative, positive) ids of two columns to keep, such as those of the tokens "-" and "+" in a vocabulary.
        cu_seqlens: [B + 1] integers: packed row b owns tokens cu_seqlens[b] .. cu_seqlens[b + 1] - 1. None: all are one row.

    Returns:
        steps [S, C] (or [S]; with ``columns`` [S, 2], positive 1), differentiable; offsets [B + 1] int64.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> mask = torch.tensor([[False, True, True], [False, False, True]])
    >>> logits, offsets = ladderkern.prm.gather_steps(torch.randn(2, 3, 2), mask)
    >>> logits.shape, offsets.tolist()
    (torch.Size([3, 2]), [0, 2, 3])
    """
    if mask.dim() == 1:
        logits, mask = logits[None], mask[None]
    elif cu_seqlens is not None:
        raise ValueError(f"cu_seqlens must be None for a mask of shape {tuple(mask.shape)}: it cuts packed tokens, [T]")
    check_mask(logits, mask)
    B, T = mask.shape
    index = step_index(mask, num_steps)
    offsets = torch.searchsorted(index, _row_starts(mask, cu_seqlens))
    token = index if num_steps is None else index.clamp(max=max(B * T - 1, 0))
    steps = _take(logits, token, columns)
    if num_steps is not None:
        steps = torch.where((index < B * T).view(-1, *(1,) * (steps.dim() - 1)), steps, float("nan"))
    return steps, offsets


def _take(logits: Tensor, token: Tensor, columns: tuple[int, int] | None) -> Tensor:
    """What ``logits`` [B, T, C] or [B, T] hold at each of these of the B * T tokens.  [S, C], [S] or [S, 2]"""
    B, T = logits.shape[:2]
    even = B == 1 or logits.stride(0) == T * logits.stride(1)  # one index a token, at a third of the cost of two
    rows = logits.flatten(0, 1) if even else logits
    at = (token,) if even else (token.div(max(T, 1), rounding_mode="floor"), token.remainder(max(T, 1)))
    if columns is None:
        return rows.index_select(0, token) if even else rows[at]
    if logits.dim() != 3:
        raise ValueError(f"columns must be None for logits of shape {tuple(logits.shape)}, which have no columns")
    places = [i[:, None] for i in at] + [column_ids(columns, logits.shape[2], logits.device)]
    return rows[tuple(places)]


def step_index(mask: Tensor, num_steps: int | None) -> Tensor:
    """Which of the B * T tokens are steps, in order.  [S] int64

    Raises ValueError for a wrong ``num_steps``, where values may be read; else entries beyond the true number are B * T.
    """
    flat = mask.reshape(-1)
    readable = values_readable(mask)
    if readable and mask.device.type == "cpu":
        index = torch.from_numpy(np.flatnonzero(flat.numpy()))  # torch's nonzero takes five times as long
    elif num_steps is None:
        index = flat.nonzero().squeeze(1)
    else:
        index = torch.nonzero_static(flat, size=num_steps, fill_value=flat.shape[0]).squeeze(1)
    if num_steps is not None and readable:
        found = len(index) if mask.device.type == "cpu" else int(flat.sum())
        if found != num_steps:
            raise ValueError(f"num_steps must be the number of steps in mask, {found}, got {num_steps}")
    return index


def _row_starts(mask: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The first token of each row of ``mask`` [B, T], and the end of the last; of packed tokens [1, T] as said.  [B + 1]"""
    B, T = mask.shape
    if cu_seqlens is None:
        return torch.arange(B + 1, device=mask.device) * T
    check_integers(cu_seqlens=cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0 or cu_seqlens.device != mask.device:
        raise ValueError(f"cu_seqlens must have shape [B + 1] on {mask.device}, "
                         f"got {tuple(cu_seqlens.shape)} on {cu_seqlens.device}")  # fmt: skip
    check_offsets(cu_seqlens, T, "cu_seqlens", "tokens")
    return cu_seqlens.to(torch.int64).contiguous()


def gather_steps_by_token(
    logits: Tensor,
    input_ids: Tensor,
    step_token_id: int | Sequence[int],
    shift: int = 0,
    num_steps: int | None = None,
    *,
    ignore_before: int | Tensor | None = None,
    columns: tuple[int, int] | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`gather_steps` at the positions of a separator token, as :func:`step_mask` finds them.

    Args:
        logits, num_steps, columns, cu_seqlens: as for :func:`gather_steps`, which also says what is returned.
        input_ids, step_token_id, shift, ignore_before: as for :func:`step_mask`.

    Reading the ids costs more than reading the steps: whoever knows the positions passes a mask.

    >>> ids = torch.tensor([[5, 9, 9], [5, 5, 9]])
    >>> logits, offsets = ladderkern.prm.gather_steps_by_token(torch.randn(2, 3, 2), ids, 9)
    >>> offsets.tolist()
    [0, 2, 3]
    """
    mask = step_mask(input_ids, step_token_id, shift, ignore_before=ignore_before)
    return gather_steps(logits, mask, num_steps, columns=columns, cu_seqlens=cu_seqlens)


def step_mask(
    input_ids: Tensor, step_token_id: int | Sequence[int], shift: int = 0, *, ignore_before: int | Tensor | None = None
) -> Tensor:
    """Where each step's score is read.  [B, T] bool

    Args:
        input_ids: [B, T] integers; of packed tokens [T].
        step_token_id: id of the separator behind each step, or several ids.
        shift: 0 reads at the separator (Qwen, Math-Shepherd); -1 at the position before it (models that predict it, RLHFlow).
        ignore_before: position in the row, or one for each [B] int, before which separators do not count: a prompt may hold
            some too (left padding counts as positions). Of packed tokens an int alone: mask the prompts instead.

    Raises:
        TypeError, ValueError: naming the argument; with shift -1, on CPU, a separator at position 0 that counts (on a device it
            has no step).

    >>> ladderkern.prm.step_mask(torch.tensor([[5, 9, 9]]), 9)
    tensor([[False,  True,  True]])
    """
    check_integers(input_ids=input_ids)
    if input_ids.dim() not in (1, 2):
        raise ValueError(f"input_ids must have shape [B, T] or [T], got {tuple(input_ids.shape)}")
    if shift not in (0, -1):
        raise ValueError(f"shift must be 0 or -1, got {shift}")
    ids = [step_token_id] if isinstance(step_token_id, int) else list(step_token_id)
    if not ids:
        raise ValueError("step_token_id must be an id or some ids, got none")
    found = input_ids == ids[0]
    for other in ids[1:]:
        found = found | (input_ids == other)
    if ignore_before is not None:
        if isinstance(ignore_before, Tensor):
            check_integers(ignore_before=ignore_before)
            if ignore_before.shape != input_ids.shape[:-1] or ignore_before.device != input_ids.device:
                raise ValueError(f"ignore_before must have shape {tuple(input_ids.shape[:-1])} on {input_ids.device}, "
                                 f"got {tuple(ignore_before.shape)} on {ignore_before.device}")  # fmt: skip
            ignore_before = ignore_before[..., None]
        found = found & (torch.arange(input_ids.shape[-1], device=input_ids.device) >= ignore_before)
    if shift == 0:
        return found
    if values_readable(found) and found[..., :1].any():
        raise ValueError("shift must be 0 where a step token stands at position 0, which has no position before it, got -1")
    return torch.cat([found[..., 1:], torch.zeros_like(found[..., :1])], dim=-1)


def check_mask(values: Tensor, mask: Tensor, name: str = "logits", mask_name: str = "mask") -> None:
    """Raises TypeError or ValueError unless ``mask`` is bool [B, T], and ``values`` floating point [B, T, C] or [B, T]."""
    if mask.dtype != torch.bool:
        raise TypeError(f"{mask_name} must have dtype bool, got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"{mask_name} must have shape [B, T], got {tuple(mask.shape)}")
    if mask.device != values.device:
        raise ValueError(f"{mask_name} must be on the device of {name}, {values.device}, got {mask.device}")
    if not values.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point, got {values.dtype}")
    if values.dim() not in (2, 3) or values.shape[:2] != mask.shape:
        B, T = mask.shape
        raise ValueError(f"{name} must have shape [{B}, {T}, C] or [{B}, {T}], got {tuple(values.shape)}")


def column_ids(columns: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """(negative, positive) as a tensor, made on the device without a copy from the host.  [2]

    Raises:
        ValueError: not two different columns of ``width``.
    """
    if len(columns) != 2 or columns[0] == columns[1] or not all(0 <= column < width for column in columns):
        raise ValueError(f"columns must be two different ids (negative, positive) in 0..{width - 1}, got {tuple(columns)}")
    negative, positive = columns
    return torch.arange(2, device=device) * (positive - negative) + negative
