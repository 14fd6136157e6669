"""Step scores out of JSON lines, each line checked, and named where it is malformed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .prm_file import FileError, Responses


def read_lines(path: Path) -> Responses:
    """Read JSON lines. Raises FileError, and OSError where the file cannot be opened."""
    entries = list(_entries(path))
    if not entries:
        raise FileError(f"{path}: no responses")
    first_line, first = entries[0]
    for line, entry in entries:
        for name in _OPTIONAL:
            if (name in entry) != (name in first):
                there, here = ("one", "missing") if name in first else ("none", "given")
                raise FileError(f"{path}:{line}: field {name!r}: {here}, but line {first_line} has {there}")
    _check_kinds(path, entries)
    rows = [entry for _, entry in entries]
    if "group" in first:
        order = _numbered([row["group"] for row in rows])[0]
        rows = [rows[i] for i in sorted(range(len(rows)), key=order.__getitem__)]
    probabilities = "probs" in first
    steps = [row["probs" if probabilities else "logits"] for row in rows]
    scores = torch.tensor([step for row in steps for step in row], dtype=torch.float64)
    responses = Responses(scores, _offsets([len(row) for row in steps]), probabilities)
    for name in ("correct", "label"):
        if name in first:
            setattr(responses, name, torch.tensor([row[name] for row in rows]))
    if "group" in first:
        groups = torch.tensor(_numbered([row["group"] for row in rows])[0])
        responses.group_sizes = torch.bincount(groups)
    if "answer" in first:
        responses.answers = torch.tensor(_numbered([row["answer"] for row in rows])[0])
    if "subset" in first:
        numbers, responses.subset_names = _numbered([row["subset"] for row in rows])
        responses.subset = torch.tensor(numbers)
    return responses


def _is_text_or_integer(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label": (lambda value: isinstance(value, int) and not isinstance(value, bool), "must be an integer"),
    "subset": (lambda value: isinstance(value, str), "must be text"),
    "group": (_is_text_or_integer, "must be text or an integer"),
    "correct": (lambda value: isinstance(value, bool), "must be true or false"),
    "answer": (_is_text_or_integer, "must be text or an integer"),
}


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, checked object) of each line that is not blank."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            where = f"{path}:{line}"
            try:
                entry = json.loads(raw)
            except ValueError as error:  # of JSON, of its encoding
                raise FileError(f"{where}: not JSON: {error}") from None
            if not isinstance(entry, dict):
                raise FileError(f"{where}: must be a JSON object, got {_short(entry)}")
            _check_scores(where, entry)
            for name, (fits, rule) in _OPTIONAL.items():
                if name in entry and not fits(entry[name]):
                    raise FileError(f"{where}: field {name!r}: {rule}, got {_short(entry[name])}")
            steps = len(entry["probs"] if "probs" in entry else entry["logits"])
            if "label" in entry and not -1 <= entry["label"] < steps:
                allowed = f"in 0..{steps - 1}, or -1" if steps else "-1"
                raise FileError(f"{where}: field 'label': must be {allowed} for {steps} steps, got {entry['label']}")
            yield line, entry


def _check_scores(where: str, entry: dict[str, Any]) -> None:
    given = [name for name in ("probs", "logits") if name in entry]
    if len(given) != 1:
        raise FileError(
            f"{where}: field 'probs': one of probs and logits must be there, got {' and '.join(given) or 'neither'}"
        )
    name = given[0]
    if not isinstance(entry[name], list):
        raise FileError(f"{where}: field {name!r}: must be a list, got {_short(entry[name])}")
    for i, step in enumerate(entry[name]):
        if name == "probs" and not (_is_number(step) and 0 <= step <= 1):
            raise FileError(f"{where}: field 'probs': step {i} must be a number in [0, 1], got {_short(step)}")
        if name == "logits" and not _is_number(step) and not (isinstance(step, list) and step and all(map(_is_number, step))):
            raise FileError(f"{where}: field 'logits': step {i} must be a number, or a list of one a class, got {_short(step)}")


def _check_kinds(path: Path, entries: list[tuple[int, dict[str, Any]]]) -> None:
    """That all lines have the same kind of scores, and all steps as many classes."""
    first_line, first = entries[0]
    name = "probs" if "probs" in first else "logits"
    classes = None  # of the first step
    for line, entry in entries:
        if name not in entry:
            raise FileError(f"{path}:{line}: field {name!r}: missing, but line {first_line} has one")
        for i, step in enumerate(entry[name] if name == "logits" else []):
            width = len(step) if isinstance(step, list) else 0
            classes = width if classes is None else classes
            if width != classes:
                got = [f"{n} classes" if n else "a plain number" for n in (classes, width)]
                raise FileError(f"{path}:{line}: field 'logits': step {i} must be as the steps before, {got[0]}, got {got[1]}")


def _is_number(value: Any) -> bool:
    """Whether it is a number of JSON that a float64 holds: infinities too, but no NaN."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max or value in (math.inf, -math.inf)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _numbered(values: list[Any]) -> tuple[list[int], list[Any]]:
    """(each value's number, in the order of their first appearance; the values by number)."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values], list(numbers)


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
