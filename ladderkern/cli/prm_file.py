"""What a file of step scores may hold, and the archives among them; JSON lines are read in prm_lines.py."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .failed import Failed

FORMAT = """\
FILE is JSON lines, one response a line, or a .npz archive.

Fields of a line:
  probs     numbers in [0, 1]: each step's probability of being right; or
  logits    numbers (scalar head), or lists of one number a class
  label     index of the first wrong step, -1 if all are right   ProcessBench
  subset    text: label scores are given for each                ProcessBench
  group     text or number, the same for responses to a problem  Best-of-N
  correct   true or false: whether the final answer is right     Best-of-N
  answer    text or number: the final answer                     majorities
Every field but the scores may be left out, in all lines. Others are ignored.

{"probs": [0.9, 0.1], "label": 1, "group": 7, "correct": false, "answer": 42}

Arrays of an archive:
  prob [S], or logits [S] or [S, C]
  offsets [R+1]      response r owns steps offsets[r] .. offsets[r+1] - 1
  label [R]          as above
  group_sizes [G]    the responses of a group are neighbours
  correct [R]        without it the first of a group is right (RewardMATH)
Without scores: steps [N], label [N] and final_answer_correct [N] give
baselines of ProcessBench.
"""


class FileError(Failed):
    """The file is not as :data:`FORMAT` says; the message names it, the line and the field."""


@dataclass
class Responses:
    """What a file holds; responses of a group are neighbours."""

    scores: Tensor  # probabilities [S], or logits [S] or [S, C]
    offsets: Tensor  # [R+1]
    probabilities: bool
    group_sizes: Tensor | None = None  # [G]
    correct: Tensor | None = None  # [R] bool
    answers: Tensor | None = None  # [R], equal numbers for equal answers
    label: Tensor | None = None  # [R]
    subset: Tensor | None = None  # [R], index into subset_names
    subset_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an archive as tensors. Raises FileError, and OSError where the file cannot be opened."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # no archive, a cut one, or one of pickles
        raise FileError(f"{path}: not a numpy archive of plain arrays: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise FileError(f"{path}: array {name!r}: must hold numbers, got {array.dtype}")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def responses_of(path: Path, arrays: dict[str, Any]) -> Responses:
    """The responses in an archive's arrays, whose lengths and values the scoring checks. Raises FileError."""
    given = [name for name in ("prob", "logits") if name in arrays]
    if len(given) != 1:
        raise FileError(f"{path}: array 'prob': one of prob and logits must be there, got {' and '.join(given) or 'neither'}")
    if "offsets" not in arrays:
        raise FileError(f"{path}: array 'offsets': missing")
    if not arrays[given[0]].dtype.is_floating_point:
        raise FileError(f"{path}: array {given[0]!r}: must hold floats, got {arrays[given[0]].dtype}")
    known = {name: arrays[name] for name in ("group_sizes", "correct", "label") if name in arrays}
    responses = Responses(arrays[given[0]], arrays["offsets"], given == ["prob"], **known)
    for name in ("correct", "label"):
        if name in arrays and arrays[name].shape != (len(arrays["offsets"]) - 1,):
            count = len(arrays["offsets"]) - 1
            raise FileError(f"{path}: array {name!r}: must have shape ({count},), got {tuple(arrays[name].shape)}")
    sizes = responses.group_sizes
    if sizes is not None and responses.correct is None:
        responses.correct = torch.zeros(len(responses.offsets) - 1, dtype=torch.bool)
        firsts = (sizes.cumsum(0) - sizes)[sizes > 0]
        if len(firsts) and (firsts.min() < 0 or firsts.max() >= len(responses.correct)):
            raise FileError(f"{path}: array 'group_sizes': must add up to the {len(responses.correct)} responses")
        responses.correct[firsts] = True
        responses.notes.append("no array 'correct': the first response of each group is taken as the right one")
    return responses
