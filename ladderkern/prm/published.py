"""Public scores and labels that come with the package, and what was published about them: a PRM's code can be checked here.

Where the numbers come from, and their licences: ``data/NOTICE`` beside this file.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

REWARDMATH = ("math_shepherd", "reasoneval_7b")
PROCESSBENCH = ("gsm8k", "math")

# RewardMATH Best-of-10 in percent (arXiv 2410.01729). Other strategies were not published for these scores.
PUBLISHED_BEST_OF_10: dict[str, dict[str, float]] = {
    "math_shepherd": {"product": 17.18, "geometric_mean": 15.74},
    "reasoneval_7b": {"product": 18.22, "geometric_mean": 20.29},
}


class RewardMath(NamedTuple):
    """One PRM's scores of RewardMATH: 483 problems x 10 responses, of which the first is right; 29,822 steps."""

    prob: Tensor  # of each step                                                                          [29822] float64
    offsets: Tensor  # response r owns steps offsets[r] .. offsets[r + 1] - 1                             [4831] int64
    group_sizes: Tensor  # responses of each problem                                                      [483] int64
    correct: Tensor  # whether the response is right                                                      [4830] bool


class ProcessBenchLabels(NamedTuple):
    """One subset of ProcessBench, without its text."""

    steps: Tensor  # of each solution                                                                     [N] int64
    label: Tensor  # index of the first wrong step, -1 for none                                           [N] int64
    final_answer_correct: Tensor  # a right answer may have a wrong step                                  [N] bool


def rewardmath(model: str) -> RewardMath:
    """Step probabilities of Math-Shepherd (``"math_shepherd"``) or ReasonEval-7B (``"reasoneval_7b"``) on RewardMATH.

    Source: Kim et al. 2024 (arXiv 2410.01729), MIT licence. Raises ValueError for another name.
    """
    arrays = _load("rewardmath", model, REWARDMATH)
    group_sizes = arrays["group_sizes"]
    correct = torch.zeros(len(arrays["offsets"]) - 1, dtype=torch.bool)
    correct[group_sizes.cumsum(0) - group_sizes] = True
    return RewardMath(arrays["prob"], arrays["offsets"], group_sizes, correct)


def processbench(subset: str) -> ProcessBenchLabels:
    """Shapes and labels of ProcessBench's ``"gsm8k"`` (400 cases) or ``"math"`` (1,000).

    Source: Zheng et al. 2024 (arXiv 2412.06559), Apache-2.0, with the corrected label of math-688. Raises ValueError for
    another name.
    """
    return ProcessBenchLabels(**_load("processbench", subset, PROCESSBENCH))


def _load(kind: str, name: str, known: tuple[str, ...]) -> dict[str, Any]:
    if name not in known:
        raise ValueError(f"{kind} data must be one of {', '.join(known)}, got {name!r}")
    path = resources.files(__package__) / "data" / f"{kind}_{name}.npz"
    with path.open("rb") as file, np.load(file) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
