"""The PRM part of ``python -m ladderkern demo``: public step scores under every strategy, beside what was published."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..prm import STRATEGIES, BestOfN, StepScores, best_of_n_table, min_is_last_share, score_probs
from ..prm.published import PUBLISHED_BEST_OF_10, REWARDMATH, RewardMath, rewardmath
from ..runtime.backend import explain
from .demo_report import text_table, write_rows
from .prm_plot import write_plot

TITLES = {"math_shepherd": "Math-Shepherd", "reasoneval_7b": "ReasonEval-7B"}


class Result(NamedTuple):
    """One PRM's data, what one call made of it, and how long that took."""

    model: str
    data: RewardMath
    scores: StepScores
    table: BestOfN
    milliseconds: float


def run(arguments: argparse.Namespace) -> None:
    """Score both, print the table, write ``prm.csv`` and ``prm.png``."""
    start = time.perf_counter()
    results = [evaluate(model) for model in REWARDMATH]
    arguments.output.mkdir(parents=True, exist_ok=True)
    csv_path, png_path = arguments.output / "prm.csv", arguments.output / "prm.png"
    write_csv(results, csv_path)
    write_plot([(panel_title(result), result.scores.argmin, result.scores.count) for result in results], png_path)
    print(f"{introduction(results)}\n\n{table(results)}\n\n{reading_guide(results)}")
    print(f"\nWritten: {csv_path}, {png_path}  ({time.perf_counter() - start:.1f} s in all)")


def evaluate(model: str) -> Result:
    """Score one PRM's steps; the time is that of the fastest of 20 calls."""
    data = rewardmath(model)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        scores = score_probs(data.prob, data.offsets)
        times.append(1000 * (time.perf_counter() - start))
    table = best_of_n_table(scores, data.group_sizes, data.correct, probabilities=True)
    return Result(model, data, scores, table, min(times))


def introduction(results: list[Result]) -> str:
    """What is being scored."""
    data = results[0].data
    R, G = len(data.correct), len(data.group_sizes)
    return "\n".join(
        (
            f"Step scores of {len(results)} process reward models on RewardMATH: {len(data.prob):,} steps of {R:,} responses",
            f"to {G} problems. Of each problem's {R // G} responses one is right. How often does the PRM put it first?",
        )
    )


def table(results: list[Result]) -> str:
    """Best-of-10 under every strategy, and the published percentages."""
    header = ["strategy", *(text for result in results for text in (TITLES[result.model], "published"))]
    rows = [
        [name.replace("_", " "), *(text for result in results for text in cells(result, i, name))]
        for i, name in enumerate(STRATEGIES)
    ]
    return text_table(header, rows)


def cells(result: Result, i: int, name: str) -> tuple[str, str]:
    """The share that strategy number ``i`` reaches, and the published one."""
    share = 100 * result.table.strict[i].item() / len(result.data.group_sizes)
    published = PUBLISHED_BEST_OF_10[result.model].get(name)
    return f"{share:.2f} %", "-" if published is None else f"{published:.2f} %"


def reading_guide(results: list[Result]) -> str:
    """What the numbers mean."""
    last = " and ".join(f"{100 * min_is_last_share(r.scores).item():.1f} % ({TITLES[r.model]})" for r in results)
    times = " and ".join(f"{result.milliseconds:.2f}" for result in results)
    return "\n".join(
        (
            "First means strictly above the nine wrong ones; chance is 10 %. Published: arXiv 2410.01729, these two alone.",
            "No strategy is best for both: compare them on your own PRM (python -m ladderkern prm report FILE).",
            f"The least score is the last step's in {last} of the responses:",
            "a PRM with a high share judges the answer rather than the steps (arXiv 2501.07301).",
            f"All of these scores in one call: {times} ms (fastest of 20); {explain('prm_scores', torch.empty(1))}.",
        )
    )


def panel_title(result: Result) -> str:
    """The name of a panel of the plot."""
    share = 100 * min_is_last_share(result.scores).item()
    return f"{TITLES[result.model]}: at the last step in {share:.1f} %"


def write_csv(results: list[Result], path: Path) -> None:
    """One line a PRM and strategy: groups won strictly and with ties, of how many, and the published percentage."""
    rows: list[dict[str, Any]] = [
        {
            "prm": result.model,
            "strategy": name,
            "strictly_first": result.table.strict[i].item(),
            "ties_counted": result.table.ties[i].item(),
            "groups": len(result.data.group_sizes),
            "published_percent": PUBLISHED_BEST_OF_10[result.model].get(name, ""),
            "min_is_last_percent": f"{100 * min_is_last_share(result.scores).item():.2f}",
            "torch": torch.__version__,
        }
        for result in results
        for i, name in enumerate(STRATEGIES)
    ]
    write_rows(rows, path)
