"""Hugging Face's Chameleon: its image logits are masked for generation of text, which leaves an image loss nothing to learn."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..runtime.checks import values_readable
from .reference import image_codes
from .table import DistanceTable

_LOOKED_AT = 16  # image rows: a masked model masks every one


def chameleon_hidden(model: Any, **inputs: Any) -> tuple[Tensor, Tensor]:
    """(hidden states, LM head's weight) of a Chameleon model: what :func:`linear_cross_entropy_with_discrepancy` takes.

    Args:
        model: ``transformers.ChameleonForConditionalGeneration`` (or a PEFT model around it).
        **inputs: what its forward takes, except labels (``input_ids``, ``attention_mask``, ``pixel_values``, ...).

    Returns:
        hidden states [B, L, H], weight [V, H].

    Raises:
        TypeError: the model has no ``model`` and ``lm_head``. ValueError: labels among the inputs.
    """
    model = _with_head(model)
    return _hidden(model, inputs), model.lm_head.weight


def chameleon_logits(model: Any, **inputs: Any) -> Tensor:
    """Logits of a Chameleon model with its image columns as they were computed.  [B, L, V]

    ``ChameleonForConditionalGeneration.forward`` of current transformers overwrites the logits of all image tokens with the
    lowest number of their dtype, so that it generates text alone; the softmax over the image columns is then uniform, and its
    gradient 0. This runs the same decoder and head without that. Arguments and errors as for :func:`chameleon_hidden`.
    """
    model = _with_head(model)
    return model.lm_head(_hidden(model, inputs))  # type: ignore[no-any-return]


def _with_head(model: Any) -> Any:
    if hasattr(model, "get_base_model"):  # PEFT
        model = model.get_base_model()
    if not hasattr(model, "model") or not hasattr(model, "lm_head"):
        raise TypeError(f"model must have a decoder `model` and an `lm_head`, got {type(model).__name__}")
    return model


def _hidden(model: Any, inputs: dict[str, Any]) -> Tensor:
    if inputs.get("labels") is not None:
        raise ValueError("inputs must not hold labels: give them to the loss")
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return model.model(**inputs)[0]  # type: ignore[no-any-return]


def warn_if_masked(logits: Tensor, labels: Tensor, table: DistanceTable, image_start: int, stacklevel: int) -> None:
    """Warn, once for a table, if an image row's image columns are all equal; looks at up to 16 rows, where it may read.

    ``stacklevel``: of the user's call, seen from here.
    """
    if table.warned or table.num_codes == 1 or not values_readable(logits):
        return
    rows = image_codes(labels, image_start, table.num_codes)[1].nonzero().squeeze(1)
    rows = rows[:: max(1, -(-len(rows) // _LOOKED_AT))]
    logits = logits.detach()
    ends = logits[rows, image_start], logits[rows, image_start + table.num_codes - 1]
    rows = rows[ends[0] == ends[1]]  # most often none: then no whole row is read
    if not len(rows):
        return
    columns = logits[rows, image_start : image_start + table.num_codes]
    flat = columns.amin(dim=1) == columns.amax(dim=1)
    if not flat.any():
        return
    table.warned = True
    value = columns[flat][0, 0].item()
    masked = " (masked)" if value <= torch.finfo(logits.dtype).min else ""
    warnings.warn(
        f"the image logits of a row are all {value:.4g}{masked}: the token discrepancy has no gradient there. Hugging Face's "
        "ChameleonForConditionalGeneration masks image tokens in its forward; use "
        "ladderkern.discrepancy.chameleon_logits(model, input_ids=...) instead of its logits",
        UserWarning,
        stacklevel=stacklevel,
    )
