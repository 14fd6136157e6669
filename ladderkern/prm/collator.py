"""Batches for training and scoring a PRM: a separator token after each step, and the step's label on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .labels import IGNORED


@dataclass
class StepCollator:
    """Turns (prompt, steps, labels) into padded tensors, as the ``data_collator`` of a Hugging Face ``Trainer``.

    A feature is a mapping of ``prompt`` (str: all text before the first step, such as a rendered chat template), ``steps``
    (list of str) and, for training, ``labels`` (one for each step: 1 or True for right, 0 or False for wrong, None or -100 for
    not judged). Give the Trainer ``remove_unused_columns=False``.

    Each step is followed by the separator's id, put there by construction: what the texts hold is never searched, so that a
    separator in a prompt is no step, and a step is tokenised as in the text with separators in it.

    Args:
        tokenizer: of transformers, with a padding token; its ``padding_side`` is followed.
        separator: the token after each step, or its id (Qwen2.5-Math-PRM: ``"<extra_0>"``).
        soft: labels are floats in [0, 1] (float32, squared error in :func:`step_loss`), not 0 or 1 (int64, cross-entropy).
        drop_after_first_error: ignore the steps after the first labelled 0, as the paper trains (arXiv 2501.07301, 3.1).
        max_length: cut what is longer, at its end; steps that lose their separator are lost, with a warning.
        pad_to_multiple_of: for tensor cores.
        return_step_mask: add ``step_mask``, where every step's separator is, labelled or not: for :func:`gather_steps`.

    Raises:
        ValueError: when made, for a separator that is no token or a tokenizer without padding; when called, naming the field.
    """

    tokenizer: Any
    separator: str | int = "<extra_0>"
    soft: bool = False
    drop_after_first_error: bool = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_step_mask: bool = False

    def __post_init__(self) -> None:
        self.separator_id = self.separator
        if isinstance(self.separator, str):
            known = self.tokenizer.get_vocab()
            if self.separator not in known:
                raise ValueError(f"separator must be a token of the tokenizer, got {self.separator!r}")
            self.separator_id = known[self.separator]
        if self.tokenizer.pad_token_id is None:
            raise ValueError("tokenizer must have a padding token, got none: set tokenizer.pad_token")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch: input_ids, attention_mask [B, T] int64; labels [B, T], -100 but at the separators; step_mask [B, T] bool.

        Without labels in any feature there are none in the batch.
        """
        rows = [self._tokens(feature) for feature in features]
        labelled = [feature.get("labels") is not None for feature in features]
        if any(labelled) != all(labelled):
            raise ValueError(f"labels must be in every feature or in none, missing in feature {labelled.index(False)}")
        batch = {
            "input_ids": self._padded([ids for ids, _ in rows], self.tokenizer.pad_token_id, torch.int64),
            "attention_mask": self._padded([[1] * len(ids) for ids, _ in rows], 0, torch.int64),
        }
        if all(labelled):
            on_steps = [self._labels(i, feature) for i, feature in enumerate(features)]
            labels = [_at(ends, values, len(ids)) for (ids, ends), values in zip(rows, on_steps, strict=True)]
            batch["labels"] = self._padded(labels, IGNORED, torch.float32 if self.soft else torch.int64)
        if self.return_step_mask:
            masks = [_at(ends, [True] * len(ends), len(ids), False) for ids, ends in rows]
            batch["step_mask"] = self._padded(masks, False, torch.bool)
        lost = sum(end >= len(ids) for ids, ends in rows for end in ends)
        if lost:
            steps = sum(len(ends) for _, ends in rows)
            warnings.warn(f"{lost} of {steps} steps lie beyond max_length={self.max_length} and are lost", stacklevel=2)
        return batch

    def _tokens(self, feature: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """(ids of a response, where its steps end before anything is cut)."""
        prompt, steps = feature["prompt"], feature["steps"]
        if isinstance(steps, str):
            raise ValueError(f"steps must be a list of str, got {steps!r}")
        # The first step is tokenised with the text that it continues: tokens may span the seam.
        texts = [prompt + steps[0], *steps[1:]] if steps else [prompt]
        pieces = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        bos = self.tokenizer.bos_token_id
        if bos is not None and pieces[0][:1] != [bos]:
            pieces[0] = [bos, *pieces[0]]
        if not steps:
            return pieces[0][: self.max_length], []
        ids = list(chain.from_iterable([*piece, self.separator_id] for piece in pieces))
        ends, length = [], 0
        for piece in pieces:
            length += len(piece) + 1
            ends.append(length - 1)
        return ids[: self.max_length], ends

    def _labels(self, i: int, feature: Mapping[str, Any]) -> list[Any]:
        labels = [IGNORED if label is None else label for label in feature["labels"]]
        if len(labels) != len(feature["steps"]):
            raise ValueError(f"labels must be one for each of {len(feature['steps'])} steps, got {len(labels)} in feature {i}")
        for label in labels:
            if label != IGNORED and not (0 <= label <= 1 if self.soft else label in (0, 1)):
                allowed = "in [0, 1]" if self.soft else "0 or 1 (soft=True takes shares)"
                raise ValueError(f"labels must be {allowed}, or None, got {label} in feature {i}")
        if self.drop_after_first_error and 0 in labels:
            kept = labels.index(0) + 1
            labels[kept:] = [IGNORED] * (len(labels) - kept)
        return labels

    def _padded(self, rows: list[list[Any]], filler: Any, dtype: torch.dtype) -> Tensor:
        length = max((len(row) for row in rows), default=0)
        multiple = self.pad_to_multiple_of or 1
        length = -(-length // multiple) * multiple
        padding = [[filler] * (length - len(row)) for row in rows]
        left = self.tokenizer.padding_side == "left"
        return torch.tensor([p + row if left else row + p for row, p in zip(rows, padding, strict=True)], dtype=dtype)


def _at(places: list[int], values: list[Any], length: int, filler: Any = IGNORED) -> list[Any]:
    """A list of ``length`` with ``values`` at ``places``; those beyond its end are left out."""
    row = [filler] * length
    for place, value in zip(places, values, strict=True):
        if place < length:
            row[place] = value
    return row
