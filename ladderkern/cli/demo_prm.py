"""The PRM part of ``python -m ladderkern demo``: public step scores under every strategy, beside what was published."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..prm import STRATEGIES, BestOfN, StepScores, best_of_n_table, min_is_last_share, score_probs
from ..prm.published import PUBLISHED_BEST_OF_10, REWARDMATH, RewardMath, rewardmath
from ..runtime.backend import explain
from . import prm_plot
from .demo_report import Options, Picture, Section, Table, percent, write_rows
from .demo_workers import Workers

TITLE = "PRM step scores: which answer comes first"
QUESTION = (
    "A process reward model scores every step of an answer. Which way of making one score of them most often puts the right "
    "one of ten answers first, and does the model judge the steps or only the answer?"
)
NAMES = {"math_shepherd": "Math-Shepherd", "reasoneval_7b": "ReasonEval-7B"}


class Result(NamedTuple):
    """One PRM's data, what one call made of it, and how long that took."""

    model: str
    data: RewardMath
    scores: StepScores
    table: BestOfN
    milliseconds: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of the problems whose right response comes strictly first, by strategy."""
        return dict(zip(STRATEGIES, (self.table.strict.double() / len(self.data.group_sizes)).tolist(), strict=True))

    @property
    def last_share(self) -> float:
        """Share of the responses whose least score is the last step's."""
        return min_is_last_share(self.scores).item()


def run(options: Options, workers: Workers) -> Section:
    """Score both and write ``prm.csv``; it takes no worker to do so."""
    results = [evaluate(model) for model in REWARDMATH]
    path = options.output / "prm.csv"
    write_csv(results, path)
    panels = [(NAMES[result.model], result.scores.argmin, result.scores.count) for result in results]
    places = {
        title: dict(zip(prm_plot.PLACES, prm_plot.shares_of_places(argmin, count)[0].tolist(), strict=True))
        for title, argmin, count in panels
    }
    return Section(
        part="prm",
        title=TITLE,
        question=QUESTION,
        paper="2501.07301",
        findings=findings(results),
        table=table(results),
        picture=Picture(
            draw=lambda narrow: prm_plot.draw(panels, narrow=narrow),
            alt="Bar charts of where in a response the least step score falls. "
            + " ".join(
                f"{title}: {', '.join(f'{place} {percent(share, 0)}' for place, share in shares.items())}."
                for title, shares in places.items()
            ),
            caption="Early, middle and late are thirds of the steps between the first and the last. Responses of a single "
            "step, whose least score is the last of necessity, are left out here and counted in the text.",
        ),
        setup=setup(results),
        caveats=caveats(results),
        csv=path,
    )


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


def table(results: list[Result]) -> Table:
    """Best-of-10 under every strategy, and the published percentages."""
    header = ("strategy", *(text for result in results for text in (NAMES[result.model], "published")))
    rows = [(name.replace("_", " "), *(text for result in results for text in _cells(result, name))) for name in STRATEGIES]
    best = {
        (row, 1 + 2 * column)
        for column, result in enumerate(results)
        for row, share in enumerate(result.shares.values())
        if share == max(result.shares.values())
    }
    caption = (
        "Problems whose right answer is put strictly above the wrong ones. Published: arXiv 2410.01729, for two strategies. "
        "Bold: the best of each model."
    )
    return Table(caption, header, rows, frozenset(best))


def _cells(result: Result, name: str) -> tuple[str, str]:
    """The share that a strategy reaches, and the published one."""
    published = PUBLISHED_BEST_OF_10[result.model].get(name)
    return percent(result.shares[name], 2), "-" if published is None else percent(published / 100, 2)


def findings(results: list[Result]) -> list[str]:
    """What the numbers say."""
    best = [max(result.shares, key=lambda name: result.shares[name]) for result in results]
    winners = ", ".join(
        f"{NAMES[result.model]} {percent(result.shares[name])} (by {name.replace('_', ' ')})"
        for result, name in zip(results, best, strict=True)
    )
    off = [
        abs(100 * result.shares[name] - published)
        for result in results
        for name, published in PUBLISHED_BEST_OF_10[result.model].items()
    ]
    last = " and ".join(f"{percent(result.last_share)} ({NAMES[result.model]})" for result in results)
    steps = sum(len(result.data.prob) for result in results)
    return [
        f"Right answer first at best: {winners}; by chance {percent(_chance(results), 0)}. "
        + ("No one strategy is best for both." if len(set(best)) > 1 else "The same strategy is best for both."),
        f"The least score is the last step's in {last} of the responses: a model with a high share judges the answer rather "
        "than the steps.",
        f"All {len(off)} published percentages are met to {max(off):.2f} points.",
        f"All aggregates of all {steps:,} step scores take {sum(r.milliseconds for r in results):.2f} ms, "
        f"{1e6 * sum(r.milliseconds for r in results) / steps:.0f} ns a step.",
    ]


def _chance(results: list[Result]) -> float:
    return float((1 / results[0].data.group_sizes.double()).mean())


def setup(results: list[Result]) -> list[tuple[str, str]]:
    """What is scored."""
    data = results[0].data
    R, G = len(data.correct), len(data.group_sizes)
    return [
        (
            "data",
            f"RewardMATH, {len(data.prob):,} steps of {R:,} answers to {G} problems; of each problem's {R // G} answers one is "
            "right. Public step scores of two process reward models, which the package holds",
        ),
        ("time", f"the fastest of 20 calls of score_probs for each model. {explain('prm_scores', torch.empty(1))}"),
    ]


def caveats(results: list[Result]) -> list[str]:
    """What the numbers are not good for."""
    problems = len(results[0].data.group_sizes)
    share = max(max(result.shares.values()) for result in results)
    error = 100 * math.sqrt(share * (1 - share) / problems)
    return [
        f"{problems} problems: one standard error of a share is up to {error:.1f} points, so strategies closer than that are "
        "in no certain order.",
        "Which strategy is best depends on the model and the data: compare them on your own PRM with `python -m ladderkern prm "
        "report FILE`.",
    ]


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
            "min_is_last_percent": f"{100 * result.last_share:.2f}",
            "torch": torch.__version__,
        }
        for result in results
        for i, name in enumerate(STRATEGIES)
    ]
    write_rows(rows, path)
