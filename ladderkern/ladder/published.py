"""Published speeds of ladder models, to compare predictions with. Numbers only; they were measured by others.

Sources, by the authors of Zhang et al. 2025 (arXiv 2501.06589):

- github.com/mayank31398/ladder-residual-inference, commit ea2e9e4, tools/plot-70b.py and tools/plot-405b.py:
  PUBLISHED_70B, PUBLISHED_405B.
- the first author's blog, github.com/Nanami18/Nanami18.github.io, blogs/ladder_residual: PUBLISHED_SIZES and two rows of
  PUBLISHED_BATCHES.

All: H100, prompts of 1024 tokens, 512 new tokens, 16 bit, NCCL, CUDA graphs; the embedding and the head are not sharded.

TOKENWEAVE_ALL_REDUCE is of TokenWeave (MLSys 2026), artifact/csvs, figures 4, 5 and 10.
"""

from __future__ import annotations

from typing import NamedTuple

PROMPT, NEW_TOKENS = 1024, 512


class Speeds(NamedTuple):
    """Tokens a second over the whole run, prompt included; ``no_communication`` is the standard model without all-reduces."""

    standard: float
    ladder: float
    parallel: float
    no_communication: float


# (batch, tensor-parallel size): Llama-3-70B. Without P2P there is no bound of its own: without communication there is no link.
_WITH_P2P = {
    (1, 2): (35.42, 36.69, 36.67, 38.24),
    (1, 4): (59.41, 67.51, 65.40, 69.04),
    (1, 8): (77.39, 101.22, 94.22, 110.59),
    (4, 2): (120.58, 126.09, 123.66, 130.77),
    (4, 4): (185.01, 204.30, 201.62, 213.73),
    (4, 8): (258.56, 331.45, 307.34, 355.80),
    (16, 4): (585.23, 635.98, 628.23, 665.07),
    (16, 8): (843.15, 1003.52, 973.74, 1109.65),
    (64, 4): (1249.67, 1358.65, 1311.54, 1433.53),
    (64, 8): (1940.99, 2242.10, 2259.38, 2474.49),
}
_WITHOUT_P2P = {
    (1, 2): (33.77, 36.94, 36.12),
    (1, 4): (53.35, 66.60, 61.93),
    (1, 8): (51.66, 82.59, 72.36),
    (4, 2): (106.60, 125.55, 116.83),
    (4, 4): (158.77, 204.24, 183.53),
    (4, 8): (173.62, 271.82, 241.08),
    (16, 4): (518.41, 598.71, 583.48),
    (16, 8): (546.68, 738.56, 744.33),
    (64, 4): (1199.62, 1313.44, 1276.66),
    (64, 8): (1454.42, 1864.05, 1873.71),
}
PUBLISHED_70B = {
    "nvlink": {cell: Speeds(*speeds) for cell, speeds in _WITH_P2P.items()},
    "no-p2p": {cell: Speeds(*speeds, _WITH_P2P[cell][-1]) for cell, speeds in _WITHOUT_P2P.items()},
}

# Batch: (standard, ladder) of Llama-3-70B at TP 8 over NVLink; the bound was not published.
PUBLISHED_BATCHES = {8: (475.04, 595.65), 32: (1312.26, 1553.72)}


class SpeedUps(NamedTuple):
    """Over the standard model on the same link."""

    ladder: float
    parallel: float
    no_communication: float


# Batch: Llama-3.1-405B, TP 16 over two nodes.
PUBLISHED_405B = {
    "two-nodes": {
        1: SpeedUps(1.364, 1.238, 1.521),
        4: SpeedUps(1.308, 1.242, 1.512),
        8: SpeedUps(1.393, 1.286, 1.659),
        16: SpeedUps(1.349, 1.272, 1.632),
    },
    "two-nodes-no-p2p": {
        1: SpeedUps(1.490, 1.397, 2.107),
        4: SpeedUps(1.566, 1.439, 2.275),
        8: SpeedUps(1.434, 1.415, 2.271),
        16: SpeedUps(1.461, 1.399, 2.160),
    },
}

# (standard, ladder) at TP 8, batch 4, over NVLink. The 34B's tokens a second were misprinted; its speed-up was 1.348.
PUBLISHED_SIZES = {
    "ladder-1b": (2063.50, 2979.42),
    "ladder-3b": (1139.88, 1727.48),
    "llama-3-8b": (902.44, 1305.52),
    "llama-3-70b": (259.62, 338.5),
}

# MiB of bfloat16: (NCCL, multimem) microseconds of an all-reduce on 8 x H100.
TOKENWEAVE_ALL_REDUCE = {
    1: (36, 16.5),
    2: (55, 20),
    4: (67, 28),
    8: (94.6, 43.7),
    16: (137, 75),
    64: (348, 257),
    128: (646, 500),
    512: (2405, 1957),
}


def published_speeds(model: str, link: str, batch: int, tp: int, prompt: int, new_tokens: int) -> Speeds | None:
    """What was published in tokens a second for exactly this run, if anything."""
    if (model, prompt, new_tokens) != ("llama-3-70b", PROMPT, NEW_TOKENS):
        return None
    return PUBLISHED_70B.get(link, {}).get((batch, tp))


def published_speed_ups(model: str, link: str, batch: int, tp: int, prompt: int, new_tokens: int) -> SpeedUps | None:
    """What was published as a ratio alone for exactly this run, if anything."""
    if (model, tp, prompt, new_tokens) != ("llama-3.1-405b", 16, PROMPT, NEW_TOKENS):
        return None
    return PUBLISHED_405B.get(link, {}).get(batch)


def published_bound(model: str, batch: int, tp: int, prompt: int, new_tokens: int) -> float | None:
    """Seconds of the published run without communication, if there was one."""
    speeds = published_speeds(model, "nvlink", batch, tp, prompt, new_tokens)
    return None if speeds is None else batch * new_tokens / speeds.no_communication
