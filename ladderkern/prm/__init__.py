"""Scores of process reward models: steps, responses, labels and evaluation (Zhang et al. 2025, arXiv 2501.07301)."""

from .adapters import make_step_rewards, score_hidden
from .collator import StepCollator
from .evaluate import (
    BestOfN,
    ProcessBench,
    ProcessBenchSubsets,
    best_of_n_table,
    first_error_sweep,
    min_is_last_share,
    process_bench,
    process_bench_subsets,
)
from .gather import gather_steps, gather_steps_by_token, step_mask
from .labels import MonteCarloLabels, consensus_filter, drop_after_first_error, first_error, monte_carlo_labels
from .loss import step_loss
from .scores import StepScores, score_masked, score_probs, score_steps
from .select import STRATEGIES, best_of_n, best_of_n_by_strategy, ranking, top_k, weighted_majority
from .state import StepState

__all__ = [
    "STRATEGIES",
    "BestOfN",
    "MonteCarloLabels",
    "ProcessBench",
    "ProcessBenchSubsets",
    "StepCollator",
    "StepScores",
    "StepState",
    "best_of_n",
    "best_of_n_by_strategy",
    "best_of_n_table",
    "consensus_filter",
    "drop_after_first_error",
    "first_error",
    "first_error_sweep",
    "gather_steps",
    "gather_steps_by_token",
    "make_step_rewards",
    "min_is_last_share",
    "monte_carlo_labels",
    "process_bench",
    "process_bench_subsets",
    "ranking",
    "score_hidden",
    "score_masked",
    "score_probs",
    "score_steps",
    "step_loss",
    "step_mask",
    "top_k",
    "weighted_majority",
]
