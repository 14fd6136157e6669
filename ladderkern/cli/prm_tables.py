"""What the PRM report prints: how much there is, Best-of-N, and ProcessBench."""

from __future__ import annotations

import torch
from torch import Tensor

from ..prm import (
    STRATEGIES,
    ProcessBench,
    StepScores,
    best_of_n_table,
    first_error_sweep,
    min_is_last_share,
    process_bench,
    process_bench_subsets,
    weighted_majority,
)
from ..runtime.text import text_table
from .prm_file import Responses

SWEEP = [k / 20 for k in range(1, 20)]


def overview(name: str, responses: Responses, scores: StepScores, threshold: float) -> str:
    """How much there is, and where the least score falls."""
    count = scores.count
    some = int((count > 0).sum())
    lines = [f"{name}: {len(count):,} responses, {int(count.sum()):,} steps ({count.min()} to {count.max()} a response)"]
    lines += [f"  {note}" for note in responses.notes]
    if some:
        last = int(scores.min_is_last.sum())
        share = 100 * min_is_last_share(scores).item()
        right = int((scores.first_error == -1).sum())
        lines += [
            f"Least score at the last step: {share:.2f} % ({last:,} of {some:,} responses).",
            f"No wrong step at threshold {threshold:g}: {100 * right / len(count):.2f} % ({right:,} of {len(count):,}).",
        ]
    return "\n".join(lines)


def best_of_n_part(responses: Responses, scores: StepScores) -> str:
    """The Best-of-N table of all strategies."""
    sizes, correct = responses.group_sizes, responses.correct
    assert sizes is not None
    assert correct is not None
    G = len(sizes)
    table = best_of_n_table(scores, sizes, correct, probabilities=responses.probabilities)
    rows = [
        (name.replace("_", " "), *(f"{100 * hits / G:.2f} % ({hits})" for hits in row))
        for name, *row in zip(STRATEGIES, *(hits.tolist() for hits in table), strict=True)
    ]
    if responses.answers is not None:
        ends = sizes.cumsum(0)
        product = scores.product.masked_fill(scores.count == 0, 0.0)
        for name, weights in (("majority", None), ("weighted majority (product)", product)):
            chosen = weighted_majority(responses.answers, weights, sizes)
            hits = int(correct[(ends - sizes + chosen)[chosen >= 0]].sum())
            rows.append((name, "", "", f"{100 * hits / G:.2f} % ({hits})"))
    group = torch.arange(G).repeat_interleave(sizes)
    right = torch.zeros(G, dtype=torch.float64).index_add(0, group, correct.double())
    chance = (right / sizes.clamp(min=1)).mean()
    least, most = int(sizes.min()), int(sizes.max())
    n = str(most) if least == most else f"{least} to {most}"
    return "\n".join(
        (
            f"Best of {n}, {G} groups: share in which a right response comes first",
            "",
            text_table(("strategy", "above all wrong ones", "ties counted as won", "ties by position"), rows),
            "",
            f"A right response is in {100 * (right > 0).double().mean():.2f} % of the groups; a random one is right in "
            f"{100 * chance:.2f} %.",
        )
    )


def process_bench_part(responses: Responses, scores: StepScores, threshold: float, strict: bool) -> str:
    """ProcessBench's scores, of each subset, and at the best threshold."""
    label = responses.label
    assert label is not None
    names = responses.subset_names or ["all"]
    subset = torch.zeros_like(label) if responses.subset is None else responses.subset
    result = process_bench_subsets(scores.first_error, label, subset, len(names))
    rows = _bench_rows(names, result.subsets, torch.bincount(subset, minlength=len(names)))
    if len(names) > 1:
        rows.append(("plain mean", "", "", f"{result.mean_f1:.2f}", str(len(label))))
    swept = first_error_sweep(scores, responses.offsets, SWEEP, strict=strict, probabilities=responses.probabilities)
    f1 = process_bench_subsets(swept, label, subset, len(names)).mean_f1
    best = int(f1.argmax())
    return "\n".join(
        (
            f"ProcessBench at threshold {threshold:g}, in percent",
            "",
            text_table(("subset", "error", "correct", "F1", "cases"), rows),
            "",
            f"Best of the thresholds 0.05, 0.10, ... 0.95, found on these labels: {SWEEP[best]:.2f}, F1 {f1[best]:.2f}.",
        )
    )


def baselines(arrays: dict[str, Tensor]) -> str:
    """ProcessBench's scores of predictors that look at no step: what a PRM has to beat."""
    steps, label, right = (arrays[name] for name in ("steps", "label", "final_answer_correct"))
    predictors = {
        "always right": torch.full_like(label, -1),
        "always the first step": torch.zeros_like(label),
        "always the last step": steps - 1,
        "by the answer, else the middle step": torch.where(right, -1, steps // 2),
        "by the answer, else the first step": torch.where(right, -1, 0),
    }
    results = [process_bench(predicted, label) for predicted in predictors.values()]
    together = ProcessBench(*(torch.stack(fields) for fields in zip(*results, strict=True)))
    rows = _bench_rows(list(predictors), together, torch.full((len(results),), len(label)))
    errors = int((label != -1).sum())
    return "\n".join(
        (
            f"ProcessBench baselines, in percent: {len(label):,} solutions, {int(steps.sum()):,} steps, {errors} with an error",
            "",
            text_table(("predictor", "error", "correct", "F1", "cases"), rows),
        )
    )


def _bench_rows(names: list[str], result: ProcessBench, cases: Tensor) -> list[tuple[str, ...]]:
    return [
        (name, *("none" if value != value else f"{value:.2f}" for value in values), str(number))
        for name, *values, number in zip(names, *(field.tolist() for field in result), cases.tolist(), strict=True)
    ]
