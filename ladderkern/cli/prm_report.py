"""``python -m ladderkern prm report FILE``: what a PRM's step scores are worth, under every strategy."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..prm import StepScores, score_probs, score_steps
from .prm_file import FORMAT, FileError, Responses, read_arrays, responses_of
from .prm_lines import read_lines
from .prm_plot import write_plot
from .prm_tables import baselines, best_of_n_part, overview, process_bench_part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = FORMAT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, metavar="FILE", help="step scores, .npz or JSON lines (see below)")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw where the least score falls (needs matplotlib)")
    parser.add_argument("--threshold", type=float, default=0.5, help="a step below it is wrong (default 0.5)")
    parser.add_argument("--strict", action="store_true", help="a step at the threshold is wrong too")
    parser.add_argument("--positive", type=int, default=1, help="class of logits that means right (default 1)")
    parser.add_argument("--class-weights", type=_weights, metavar="W,W,...", help="score = weighted class probabilities")


def _weights(text: str) -> tuple[float, ...]:
    return tuple(float(weight) for weight in text.split(","))


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit code: 1 when the file is not as it must be, or matplotlib is missing."""
    if arguments.plot is not None and importlib.util.find_spec("matplotlib") is None:
        print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    try:
        print(_report(arguments))
    except FileError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"{arguments.file}: {error.strerror}", file=sys.stderr)
    except (TypeError, ValueError) as error:  # of the scoring's checks
        print(f"{arguments.file}: {error}", file=sys.stderr)
    else:
        return 0
    return 1


def _report(arguments: argparse.Namespace) -> str:
    path = arguments.file
    if path.suffix == ".npz":
        arrays = read_arrays(path)
        if {"steps", "label", "final_answer_correct"} <= arrays.keys():
            if arguments.plot is not None:
                raise FileError(f"{path}: array 'prob': --plot needs scores, there are none")
            return f"{path.name}: labels alone.\n\n{baselines(arrays)}"
        responses = responses_of(path, arrays)
    else:
        responses = read_lines(path)
    scores = score(responses, arguments)
    parts = [overview(path.name, responses, scores, arguments.threshold)]
    if responses.group_sizes is not None and responses.correct is not None:
        parts.append(best_of_n_part(responses, scores))
    if responses.label is not None:
        parts.append(process_bench_part(responses, scores, arguments.threshold, arguments.strict))
    if arguments.plot is not None:
        if not (scores.count >= 2).any():
            raise FileError(f"{path}: nothing to plot: no response has two steps")
        try:
            arguments.plot.parent.mkdir(parents=True, exist_ok=True)
            write_plot([(path.name, scores.argmin, scores.count)], arguments.plot)
        except (OSError, ValueError) as error:  # of the system, of a format that matplotlib does not write
            raise FileError(f"{arguments.plot}: {error}") from None
        parts.append(f"Written: {arguments.plot}")
    return "\n\n".join(parts)


def score(responses: Responses, arguments: argparse.Namespace) -> StepScores:
    """All scores of the file's responses."""
    options: dict[str, Any] = {"threshold": arguments.threshold, "strict": arguments.strict}
    if responses.probabilities:
        return score_probs(responses.scores, responses.offsets, **options)
    options |= {"positive": arguments.positive, "class_weights": arguments.class_weights}
    return score_steps(responses.scores, responses.offsets, **options)
