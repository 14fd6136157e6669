"""Speed of step scores and of choosing: ``pytest bench/test_prm.py`` prints ratios, controls and targets.

What counts as a step here is a step of a solution. ``--csv PATH`` writes the ratios, ``--strict-targets`` fails on a missed
target, ``LADDERKERN_BENCH_QUICK=1`` is a smoke test.
"""

from __future__ import annotations

import os
from typing import Any

import prm_peers as peers
import pytest
import torch
from harness import Measured, Plan, Row, Spread, Target, measure
from peers import Problem as Parameters
from peers import plain_loop
from prm_peers import Groups, Steps, Tokens

from ladderkern.prm import score_steps

QUICK = os.environ.get("LADDERKERN_BENCH_QUICK", "0") not in ("", "0")
LOOP = Parameters(((64, 1024),) if QUICK else ((2048, 2048),) * 4)  # 256 MB, far beyond any cache
LOOP_BYTES = 28 * sum(rows * columns for rows, columns in LOOP.shapes)
RESPONSES = 100 if QUICK else 3400  # of ProcessBench
SIZE = "100 responses" if QUICK else "ProcessBench size"

DECADES = range(3, 5) if QUICK else range(3, 8)
ANCHOR = 3 if QUICK else 5  # the decade that the others are compared with


def _plan(builders: dict[str, Any], rounds: int) -> Plan:
    """Twice as many rebuilds as peers, so that each is created first and last, and before and after each other."""
    return Plan(1, 2) if QUICK else Plan(rebuilds=2 * len(builders), rounds=rounds, untimed=1)


def _share(m: Measured, name: str, least: int) -> Spread:
    """Share of the memory limit that a peer reaches: the least traffic at the plain loop's bandwidth, over its time."""
    return Spread(*(ratio * least / LOOP_BYTES for ratio in m.ratio("plain loop", name)))


def _headline(benchmark: Any, m: Measured, name: str) -> None:
    """Let pytest-benchmark time ours, as it was built last, for its own JSON."""
    peer = m.last[name]
    m.last.clear()
    benchmark.pedantic(peer.step, setup=peer.prepare, rounds=2 if QUICK else 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_padded_logits_are_scored_many_times_faster_than_by_the_card(benchmark, report, dtype):
    tokens = Tokens(*((8, 3, 10) if QUICK else (512, 12, 70)), dtype)
    builders = {
        "scores": peers.ours_padded(tokens),
        "lists": peers.our_lists(tokens),
        "card": peers.card_lists(tokens),
        "scores again": peers.ours_padded(tokens),
    }
    m = measure(builders, _plan(builders, rounds=6))
    card, ours = torch.tensor(m.last["card"].result), torch.tensor(m.last["lists"].result)
    assert card.shape == ours.shape == (tokens.responses, tokens.steps)
    torch.testing.assert_close(ours, card, rtol=0, atol=torch.finfo(dtype).eps)  # the card's softmax is rounded to the dtype
    torch.testing.assert_close(m.last["scores"].result.prob, ours.view(-1), rtol=0, atol=0)
    control = m.ratio("scores again", "scores")
    title = f"{tokens.responses} x {tokens.steps} steps, [B, T, 2] {'bf16' if dtype is torch.bfloat16 else 'fp32'}"
    report(
        Row(title, "card's loop / gather + score", m.ratio("card", "scores"), control, target=Target(">=", 50.0)),
        Row(title, "card's loop / make_step_rewards", m.ratio("card", "lists"), control),
    )
    _headline(benchmark, m, "scores")


def _agree(m: Measured, *names: str) -> None:
    """What is compared computes the same: indices are equal, and floats differ by what sums in float32 lose."""
    expected = m.last[names[0]].result._asdict()
    for name in names[1:]:
        torch.testing.assert_close(m.last[name].result._asdict(), expected, rtol=1e-4, atol=1e-6)


def _packed(way: Any, problem: Steps) -> dict[str, Any]:
    """Ours and what it is compared with, each as ``way`` has it: a forward alone, or a backward too."""
    builders = {
        "ours": way(score_steps, problem),
        "vectorised": way(peers.vectorised, problem),
        "compiled": way(peers.compiled(peers.vectorised), problem),
        "segment_reduce": way(peers.segmented, problem),
        "ours again": way(score_steps, problem),
        "plain loop": plain_loop(LOOP),
    }
    if QUICK:
        del builders["compiled"]  # compiling takes longer than all the rest
    return builders


def test_packed_steps_are_scored_faster_than_by_vectorised_code(benchmark, report):
    problem = Steps(RESPONSES)
    builders = _packed(peers.forward, problem)
    m = measure(builders, _plan(builders, rounds=8))
    names = [name for name in ("vectorised", "compiled", "segment_reduce") if name in builders]
    _agree(m, "ours", *names)
    control, share = m.ratio("ours again", "ours"), _share(m, "ours", problem.least_bytes())
    title = f"packed fp32, {SIZE}"
    for name in names:
        target = None if name == "segment_reduce" else Target(">=", 5.0)
        report(Row(title, f"{name} / ours", m.ratio(name, "ours"), control, share.median, target))
    report(Row(title, "memory limit / ours", share, control))
    _headline(benchmark, m, "ours")


def test_backward_of_every_score_is_faster_too(benchmark, report):
    builders = _packed(peers.forward_and_backward, Steps(RESPONSES))
    del builders["plain loop"]
    m = measure(builders, _plan(builders, rounds=8))
    names = [name for name in ("vectorised", "compiled", "segment_reduce") if name in builders]
    for name in names:
        torch.testing.assert_close(m.last[name].result, m.last["ours"].result, rtol=1e-4, atol=1e-5)
    for name in names:
        report(Row(f"forward + backward fp32, {SIZE}", f"{name} / ours", m.ratio(name, "ours"), m.ratio("ours again", "ours")))
    _headline(benchmark, m, "ours")


def test_time_is_linear_in_steps(report):
    """Outputs lie where earlier outputs lay: the allocator keeps memory, and untimed calls have faulted its pages in."""
    problems = {decade: Steps(round(10**decade * 3400 / 25697)) for decade in DECADES}
    calls = {decade: 10 ** max(0, ANCHOR - decade) for decade in DECADES}
    builders = {f"10^{decade}": peers.repeated(score_steps, problems[decade], calls[decade]) for decade in DECADES}
    m = measure({**builders, "plain loop": plain_loop(LOOP)}, Plan(1, 2) if QUICK else Plan(rebuilds=3, rounds=6, untimed=1))
    steps = {decade: calls[decade] * int(problems[decade].offsets()[-1]) for decade in DECADES}
    for decade in DECADES:
        name = f"10^{decade}"
        times = Spread.of([1e9 * t / steps[decade] for t in m.times[name]])
        ratio = Spread(*(r * steps[ANCHOR] / steps[decade] for r in m.ratio(name, f"10^{ANCHOR}")))
        share = _share(m, name, calls[decade] * problems[decade].least_bytes()).median
        target = Target("<=", 1.5) if decade > ANCHOR and not QUICK else None  # below, what a call costs shows
        report(
            Row(f"packed fp32, {name} steps", "ns a step", times, share=share),
            Row(f"packed fp32, {name} steps", f"time a step / at 10^{ANCHOR}", ratio, share=share, target=target),
        )


def test_choosing_and_sweeping_in_one_call_are_faster_than_loops(report):
    groups, problem = (Groups(10, 8), Steps(RESPONSES)) if QUICK else (Groups(425, 8), Steps(RESPONSES))
    thresholds = [i / 20 for i in range(21)]
    builders = {
        "best_of_n": peers.our_choice(groups),
        "choice in a loop": peers.chosen_in_a_loop(groups),
        "best_of_n again": peers.our_choice(groups),
        "sweep": peers.our_sweep(problem, thresholds),
        "sweep in a loop": peers.swept_in_a_loop(problem, thresholds),
        "sweep again": peers.our_sweep(problem, thresholds),
    }
    m = measure(builders, _plan(builders, rounds=4))
    assert m.last["best_of_n"].result.tolist() == m.last["choice in a loop"].result
    assert m.last["sweep"].result.tolist() == m.last["sweep in a loop"].result
    report(
        Row(
            f"best_of_n, {groups.problems} problems x {groups.size}",
            "Python loop / ours",
            m.ratio("choice in a loop", "best_of_n"),
            m.ratio("best_of_n again", "best_of_n"),
        ),
        Row(
            f"first_error_sweep, {len(thresholds)} thresholds, {SIZE}",
            "Python loop / ours",
            m.ratio("sweep in a loop", "sweep"),
            m.ratio("sweep again", "sweep"),
        ),
    )
