"""Speed of the ladder's parts: ``pytest bench/test_ladder.py`` prints ratios, controls and targets.

Times of norms are of a forward and a backward. ``--csv PATH`` writes them, ``--strict-targets`` fails on a missed one,
``LADDERKERN_BENCH_QUICK=1`` is a smoke test.
"""

from __future__ import annotations

import os
from typing import Any

import ladder_overlap
import ladder_peers as norms
import pytest
import torch
from harness import Measured, Plan, Row, Spread, Target, measure
from ladder_peers import NormProblem

QUICK = os.environ.get("LADDERKERN_BENCH_QUICK", "0") not in ("", "0")
ROWS, HIDDEN = (64, 256) if QUICK else (4096, 4096)
ACCESSES = 8  # of an element, forward and backward: x, update, stream, normed; both gradients, stream, gradient

NORM_TARGETS = {"eager": Target(">=", 1.5), "compiled": Target(">=", 1.0), "limit": Target(">=", 0.85)}


def _agree(m: Measured, *names: str) -> None:
    """What is compared computes the same: no result differs by more than bfloat16 rounds."""
    expected = m.last[names[0]].results
    for name in names[1:]:
        for a, b in zip(m.last[name].results, expected, strict=True):
            difference, largest = (a.float() - b.float()).abs().max().item(), b.abs().max().item()
            assert difference <= 0.02 * largest, f"{name}: {difference} of {largest}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_add_and_norm_are_as_fast_as_memory(benchmark: Any, report: Any, dtype: torch.dtype) -> None:
    problem = NormProblem(ROWS, HIDDEN, dtype)
    builders = {
        "ours": norms.ours(problem),
        "eager": norms.eager(problem),
        "compiled": norms.compiled(problem),
        "ours again": norms.ours(problem),
        "plain loop": norms.plain_norm(problem),
    }
    if QUICK:
        del builders["compiled"]  # compiling takes longer than all the rest
    m = measure(builders, Plan(1, 2) if QUICK else Plan(rebuilds=2 * len(builders), rounds=4, untimed=1))
    _agree(m, *(name for name in ("ours", "eager", "compiled") if name in builders))
    control = m.ratio("ours again", "ours")
    bytes_of_loop = ACCESSES * torch.float32.itemsize
    share = Spread(*(ratio * ACCESSES * dtype.itemsize / bytes_of_loop for ratio in m.ratio("plain loop", "ours")))
    title = f"add + norm {'bf16' if dtype is torch.bfloat16 else 'fp32'} [{ROWS}, {HIDDEN}]"
    for other in ("eager", "compiled"):
        if other in builders:
            report(Row(title, f"{other} / ours", m.ratio(other, "ours"), control, share.median, NORM_TARGETS[other]))
    report(Row(title, "memory limit / ours", share, control, target=NORM_TARGETS["limit"]))
    peer = m.last["ours"]
    m.last.clear()
    benchmark.pedantic(peer.step, setup=peer.prepare, rounds=2 if QUICK else 10)


def test_a_ladder_hides_its_communication(report: Any) -> None:
    modules, rounds = (4, 1) if QUICK else (24, 5)
    shares = ladder_overlap.measure(modules, compute=0.02, communication=0.015, rounds=rounds)
    for way, values in shares.items():
        title = f"ladder TP=2, {modules} modules of 20 ms, sums of 15 ms"
        report(Row(title, f"hidden share, {way}", Spread.of(values), target=None if QUICK else Target(">=", 0.85)))
