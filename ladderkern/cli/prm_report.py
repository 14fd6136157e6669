"""``python -m ladderkern prm report FILE``: what a PRM's step scores are worth, under every strategy."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..prm import StepScores, score_probs, score_steps
from .failed import Failed
from .prm_file import FileError, Responses, read_arrays, responses_of
from .prm_lines import read_lines
from .prm_plot import write_plot
from .prm_results import baselines, best_of_n, overview, process_bench


def report(path: Path, plot: Path | None, *, threshold: float, strict: bool, **of_logits: Any) -> dict[str, Any]:
    """What the file's step scores are worth, as numbers; ``of_logits`` as :func:`score`.

    Raises Failed when the file is not as it must be, an option does not fit it, or the plot cannot be drawn.
    """
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise Failed("--plot needs matplotlib: pip install matplotlib")
    try:
        return _report(path, plot, threshold, strict, of_logits)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except (TypeError, ValueError) as error:  # of the scoring's checks
        raise Failed(f"{path}: {error}") from None


def _report(path: Path, plot: Path | None, threshold: float, strict: bool, of_logits: dict[str, Any]) -> dict[str, Any]:
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        if {"steps", "label", "final_answer_correct"} <= arrays.keys():
            if plot is not None:
                raise FileError(f"{path}: array 'prob': --plot needs scores, there are none")
            return {"file": path.name, "baselines": baselines(arrays)}
        responses = responses_of(path, arrays)
    else:
        responses = read_lines(path)
    scores = score(responses, threshold, strict, **of_logits)
    result = {"file": path.name, "threshold": threshold, "strict": strict, **overview(responses, scores)}
    if responses.group_sizes is not None and responses.correct is not None:
        result["best_of_n"] = best_of_n(responses, scores)
    if responses.label is not None:
        result["process_bench"] = process_bench(responses, scores, strict)
    if plot is not None:
        result["plot"] = str(_plotted(path, scores, plot))
    return result


def score(
    responses: Responses, threshold: float, strict: bool, positive: int = 1, class_weights: Sequence[float] | None = None
) -> StepScores:
    """All scores of the file's responses; ``positive`` and ``class_weights`` are of logits."""
    if responses.probabilities:
        return score_probs(responses.scores, responses.offsets, threshold=threshold, strict=strict)
    options: dict[str, Any] = {"positive": positive, "class_weights": class_weights, "threshold": threshold, "strict": strict}
    return score_steps(responses.scores, responses.offsets, **options)


def _plotted(path: Path, scores: StepScores, plot: Path) -> Path:
    if not (scores.count >= 2).any():
        raise FileError(f"{path}: nothing to plot: no response has two steps")
    try:
        plot.parent.mkdir(parents=True, exist_ok=True)
        write_plot([(path.name, scores.argmin, scores.count)], plot)
    except (OSError, ValueError) as error:  # of the system, of a format that matplotlib does not write
        raise FileError(f"{plot}: {error}") from None
    return plot
