"""The numbers of the PRM report: how much there is, Best-of-N, and ProcessBench. Percentages and counts; None for no cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import prm
from ..prm import STRATEGIES, StepScores
from .prm_file import Responses

SWEEP = [k / 20 for k in range(1, 20)]
MAJORITIES = ("majority", "weighted_majority_product")


def overview(responses: Responses, scores: StepScores) -> dict[str, Any]:
    """How much there is, and where the least score falls."""
    count = scores.count
    some = int((count > 0).sum())
    result: dict[str, Any] = {
        "responses": len(count),
        "steps": int(count.sum()),
        "steps_of_a_response": [int(count.min()), int(count.max())],
        "notes": responses.notes,
    }
    if some:
        last, right = int(scores.min_is_last.sum()), int((scores.first_error == -1).sum())
        share = 100 * prm.min_is_last_share(scores).item()
        result["least_score_is_last"] = {"responses": last, "of": some, "percent": share}
        result["no_wrong_step"] = {"responses": right, "of": len(count), "percent": 100 * right / len(count)}
    return result


def best_of_n(responses: Responses, scores: StepScores) -> dict[str, Any]:
    """In how many groups a right response comes first, under every strategy, and by majority where there are answers."""
    sizes, correct = responses.group_sizes, responses.correct
    assert sizes is not None
    assert correct is not None
    G = len(sizes)
    table = prm.best_of_n_table(scores, sizes, correct, probabilities=responses.probabilities)
    kinds = ("above_all_wrong", "ties_won", "ties_by_position")
    hits: dict[str, dict[str, int]] = {
        name: dict(zip(kinds, row, strict=True))
        for name, *row in zip(STRATEGIES, *(column.tolist() for column in table), strict=True)
    }
    if responses.answers is not None:
        ends = sizes.cumsum(0)
        product = scores.product.masked_fill(scores.count == 0, 0.0)
        for name, weights in zip(MAJORITIES, (None, product), strict=True):
            chosen = prm.weighted_majority(responses.answers, weights, sizes)
            hits[name] = {"ties_by_position": int(correct[(ends - sizes + chosen)[chosen >= 0]].sum())}
    group = torch.arange(G).repeat_interleave(sizes)
    right = torch.zeros(G, dtype=torch.float64).index_add(0, group, correct.double())
    return {
        "groups": G,
        "responses_of_a_group": [int(sizes.min()), int(sizes.max())],
        "groups_won": hits,
        "percent_with_a_right_response": 100 * (right > 0).double().mean().item(),
        "percent_of_chance": 100 * (right / sizes.clamp(min=1)).mean().item(),
    }


def process_bench(responses: Responses, scores: StepScores, strict: bool) -> dict[str, Any]:
    """ProcessBench's scores of each subset, their plain mean, and the best threshold."""
    label = responses.label
    assert label is not None
    names = responses.subset_names or ["all"]
    subset = torch.zeros_like(label) if responses.subset is None else responses.subset
    result = prm.process_bench_subsets(scores.first_error, label, subset, len(names))
    swept = prm.first_error_sweep(scores, responses.offsets, SWEEP, strict=strict, probabilities=responses.probabilities)
    f1 = prm.process_bench_subsets(swept, label, subset, len(names)).mean_f1
    best = int(f1.argmax())
    return {
        "subsets": _named(names, result.subsets, torch.bincount(subset, minlength=len(names))),
        "mean_f1": result.mean_f1.item(),
        "cases": len(label),
        "best_threshold": {"threshold": SWEEP[best], "mean_f1": f1[best].item()},
    }


def baselines(arrays: dict[str, Tensor]) -> dict[str, Any]:
    """ProcessBench's scores of predictors that look at no step: what a PRM has to beat."""
    steps, label, right = (arrays[name] for name in ("steps", "label", "final_answer_correct"))
    predictors = {
        "always right": torch.full_like(label, -1),
        "always the first step": torch.zeros_like(label),
        "always the last step": steps - 1,
        "by the answer, else the middle step": torch.where(right, -1, steps // 2),
        "by the answer, else the first step": torch.where(right, -1, 0),
    }
    results = [prm.process_bench(predicted, label) for predicted in predictors.values()]
    together = prm.ProcessBench(*(torch.stack(fields) for fields in zip(*results, strict=True)))
    return {
        "solutions": len(label),
        "steps": int(steps.sum()),
        "with_an_error": int((label != -1).sum()),
        "predictors": _named(list(predictors), together, torch.full((len(results),), len(label))),
    }


def _named(names: list[str], result: prm.ProcessBench, cases: Tensor) -> dict[str, dict[str, Any]]:
    columns = ("error", "correct", "f1", "cases")
    return {
        name: {key: None if value != value else value for key, value in zip(columns, values, strict=True)}
        for name, *values in zip(names, *(field.tolist() for field in result), cases.tolist(), strict=True)
    }
