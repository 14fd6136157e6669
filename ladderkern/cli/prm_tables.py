"""The PRM report's numbers as text."""

from __future__ import annotations

from typing import Any

from ..runtime.text import text_table
from .prm_results import MAJORITIES


def to_text(result: dict[str, Any]) -> str:
    """All parts that the report has, one below the other."""
    if "baselines" in result:
        return f"{result['file']}: labels alone.\n\n{_baselines(result['baselines'])}"
    parts = [_overview(result)]
    if "best_of_n" in result:
        parts.append(_best_of_n(result["best_of_n"]))
    if "process_bench" in result:
        parts.append(_process_bench(result["process_bench"], result["threshold"]))
    if "plot" in result:
        parts.append(f"Written: {result['plot']}")
    return "\n\n".join(parts)


def _overview(result: dict[str, Any]) -> str:
    least, most = result["steps_of_a_response"]
    lines = [
        f"{result['file']}: {result['responses']:,} responses, {result['steps']:,} steps ({least} to {most} a response)",
        *(f"  {note}" for note in result["notes"]),
    ]
    if "least_score_is_last" in result:
        last, right = result["least_score_is_last"], result["no_wrong_step"]
        lines += [
            f"Least score at the last step: {last['percent']:.2f} % ({last['responses']:,} of {last['of']:,} responses).",
            f"No wrong step at threshold {result['threshold']:g}: {right['percent']:.2f} % "
            f"({right['responses']:,} of {right['of']:,}).",
        ]
    return "\n".join(lines)


def _best_of_n(part: dict[str, Any]) -> str:
    G, (least, most) = part["groups"], part["responses_of_a_group"]

    def cell(hits: int | None) -> str:
        return "" if hits is None else f"{100 * hits / G:.2f} % ({hits})"

    titles = dict(zip(MAJORITIES, ("majority", "weighted majority (product)"), strict=True))
    rows = [
        (
            titles.get(name, name.replace("_", " ")),
            *(cell(hits.get(kind)) for kind in ("above_all_wrong", "ties_won", "ties_by_position")),
        )
        for name, hits in part["groups_won"].items()
    ]
    n = str(most) if least == most else f"{least} to {most}"
    return "\n".join(
        (
            f"Best of {n}, {G} groups: share in which a right response comes first",
            "",
            text_table(("strategy", "above all wrong ones", "ties counted as won", "ties by position"), rows),
            "",
            f"A right response is in {part['percent_with_a_right_response']:.2f} % of the groups; a random one is right in "
            f"{part['percent_of_chance']:.2f} %.",
        )
    )


def _process_bench(part: dict[str, Any], threshold: float) -> str:
    rows, best = _bench_rows(part["subsets"]), part["best_threshold"]
    if len(rows) > 1:
        rows.append(("plain mean", "", "", f"{part['mean_f1']:.2f}", str(part["cases"])))
    return "\n".join(
        (
            f"ProcessBench at threshold {threshold:g}, in percent",
            "",
            text_table(("subset", "error", "correct", "F1", "cases"), rows),
            "",
            "Best of the thresholds 0.05, 0.10, ... 0.95, found on these labels: "
            f"{best['threshold']:.2f}, F1 {best['mean_f1']:.2f}.",
        )
    )


def _baselines(part: dict[str, Any]) -> str:
    return "\n".join(
        (
            f"ProcessBench baselines, in percent: {part['solutions']:,} solutions, {part['steps']:,} steps, "
            f"{part['with_an_error']} with an error",
            "",
            text_table(("predictor", "error", "correct", "F1", "cases"), _bench_rows(part["predictors"])),
        )
    )


def _bench_rows(named: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    def cell(value: float | None) -> str:
        return "none" if value is None else f"{value:.2f}"

    return [
        (name, *(cell(scores[key]) for key in ("error", "correct", "f1")), str(scores["cases"]))
        for name, scores in named.items()
    ]
