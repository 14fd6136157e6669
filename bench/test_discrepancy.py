"""Speed and memory of the token discrepancy: ``pytest bench/test_discrepancy.py`` prints ratios, controls and targets.

Times are of a forward and a backward. ``--csv PATH`` writes them, ``--strict-targets`` fails on a missed one,
``LADDERKERN_BENCH_QUICK=1`` is a smoke test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import discrepancy_peers as losses
import pytest
import torch
from discrepancy_peers import Problem
from harness import Measured, Plan, Row, Spread, Target, measure
from peers import Problem as Parameters
from peers import plain_loop

QUICK = os.environ.get("LADDERKERN_BENCH_QUICK", "0") not in ("", "0")
ROWS, CODES, VOCABULARY = (32, 256, 1024) if QUICK else (1024, 8192, 65536)
LOOP = Parameters(((64, 1024),) if QUICK else ((2048, 2048),) * 4)  # 256 MB, far beyond any cache
LOOP_BYTES = 28 * sum(rows * columns for rows, columns in LOOP.shapes)
TABLE_BYTES = 2  # of a distance in float16

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SLOW = Plan(rebuilds=1, rounds=2 if QUICK else 3)


def _plan(builders: dict[str, Any]) -> Plan:
    """Twice as many rebuilds as peers, so that each is created first and last, and before and after each other."""
    return Plan(1, 2) if QUICK else Plan(rebuilds=2 * len(builders), rounds=4)


def _title(what: str, problem: Problem) -> str:
    layout = "[T, N]" if problem.columns == problem.codes else "[T, V]"
    mixed = "" if problem.images == 1 else f", {100 * problem.images:.0f} % image rows"
    return f"{what} {'bf16' if problem.dtype is torch.bfloat16 else 'fp32'} {layout}{mixed}"


def _least_bytes(problem: Problem, joint: bool) -> int:
    """What must move: forward and again backward the logits and, of image rows, a row of the table; the gradient once.

    The loss alone reads the image columns of image rows, the joint op all.
    """
    images = round(problem.rows * problem.images)
    logits = problem.rows * problem.columns if joint else images * problem.codes
    gradient = problem.rows * problem.columns
    return (2 * logits + gradient) * problem.dtype.itemsize + 2 * images * problem.codes * TABLE_BYTES


def _share(m: Measured, name: str, least: int) -> Spread:
    """Share of the memory limit that a peer reaches: the least traffic at the plain loop's bandwidth, over its time."""
    return Spread(*(ratio * least / LOOP_BYTES for ratio in m.ratio("plain loop", name)))


def _agree(m: Measured, *names: str) -> None:
    """What is compared computes the same: the losses differ by no more than bfloat16 rounds."""
    values = {name: float(m.last[name].value) for name in names if name in m.last}
    expected = next(iter(values.values()))
    assert all(abs(value - expected) <= 0.02 * abs(expected) for value in values.values()), values


def _headline(benchmark: Any, m: Measured, name: str) -> None:
    """Let pytest-benchmark time ours, as it was built last, for its own JSON."""
    peer = m.last[name]
    m.last.clear()
    benchmark.pedantic(peer.step, setup=peer.prepare, rounds=2 if QUICK else 10)


@DTYPES
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_loss_is_many_times_faster_than_the_published_way(report, wide, dtype):
    problem = Problem(ROWS, CODES, VOCABULARY if wide else CODES, dtype)
    builders = {"ours": losses.ours(problem), "published": losses.published(problem), "ours again": losses.ours(problem)}
    m = measure(builders, SLOW)
    _agree(m, *builders)
    control = m.ratio("ours again", "ours")
    ratio = m.ratio("published", "ours")
    report(Row(_title("loss", problem), "published / ours", ratio, control, target=Target(">=", 20.0)))


NARROW_TARGETS = {"eager": Target(">=", 4.0), "compiled": Target(">=", 2.2), "limit": Target(">=", 0.55)}
WIDE_TARGETS = {"eager": Target(">=", 2.2), "compiled": Target(">=", 1.4)}


@DTYPES
@pytest.mark.parametrize(
    ("wide", "images", "targets"),
    [(False, 1.0, NARROW_TARGETS), (True, 1.0, WIDE_TARGETS), (True, 0.5, {})],
    ids=["narrow", "wide", "mixed"],
)
def test_loss_is_faster_than_eager_and_compiled_chains(benchmark, report, wide, images, targets, dtype):
    problem = Problem(ROWS, CODES, VOCABULARY if wide else CODES, dtype, images)
    builders = {
        "ours": losses.ours(problem),
        "eager": losses.eager(problem),
        "compiled": losses.compiled(problem),
        "ours again": losses.ours(problem),
        "plain loop": plain_loop(LOOP),
    }
    if QUICK:
        del builders["compiled"]  # compiling takes longer than all the rest
    m = measure(builders, _plan(builders))
    _agree(m, "ours", "eager", "compiled")
    control, share = m.ratio("ours again", "ours"), _share(m, "ours", _least_bytes(problem, joint=False))
    title = _title("loss", problem)
    for other in ("eager", "compiled"):
        if other in builders:
            report(Row(title, f"{other} / ours", m.ratio(other, "ours"), control, share.median, targets.get(other)))
    if "limit" in targets:
        report(Row(title, "memory limit / ours", share, control, target=targets["limit"]))
    _headline(benchmark, m, "ours")


JOINT_TARGETS = {"our CE": Target("<=", 1.10), "CE + eager": Target("<=", 0.45), "compiled": Target("<=", 1.0)}


@DTYPES
@pytest.mark.parametrize(("images", "targets"), [(1.0, JOINT_TARGETS), (0.5, {})], ids=["images", "mixed"])
def test_joint_op_costs_little_more_than_cross_entropy_alone(benchmark, report, images, targets, dtype):
    problem = Problem(ROWS, CODES, VOCABULARY, dtype, images)
    builders = {
        "joint": losses.joint(problem),
        "our CE": losses.our_cross_entropy(problem),
        "F.cross_entropy": losses.cross_entropy(problem),
        "CE + eager": losses.eager_sum(problem),
        "compiled": losses.compiled_sum(problem),
        "joint again": losses.joint(problem),
        "plain loop": plain_loop(LOOP),
    }
    if QUICK:
        del builders["compiled"]
    m = measure(builders, _plan(builders))
    _agree(m, "joint", "CE + eager", "compiled")
    control, share = m.ratio("joint again", "joint"), _share(m, "joint", _least_bytes(problem, joint=True))
    title = _title("joint", problem)
    names = {
        "our CE": "joint / our cross-entropy alone",
        "CE + eager": "joint / (F.cross_entropy + eager)",
        "compiled": "joint / compiled sum",
        "F.cross_entropy": "joint / F.cross_entropy alone",
    }
    for other, quantity in names.items():
        if other in builders:
            report(Row(title, quantity, m.ratio("joint", other), control, share.median, targets.get(other)))
    _headline(benchmark, m, "joint")


def _memory(what: str, dtype: str, **sizes: int) -> dict[str, int]:
    """What bench/memory.py finds in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("memory.py")), what, "--dtype", dtype]
    for name, size in sizes.items():
        command += [f"--{name}", str(size)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 3 << 20 <= found["probe"] <= 5 << 20, f"the measure does not see a block of 4 MB: {found}"
    return found


MEMORY = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
NAMES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"], ids=["fp32", "bf16"])
SHORT = {"float32": "fp32", "bfloat16": "bf16"}


@MEMORY
@NAMES
@pytest.mark.parametrize("op", ["loss", "joint"])
def test_little_but_the_gradient_is_needed(report, op, dtype):
    # So many rows that 16 bytes of each are many pages: the measure may be wrong by some.
    sizes = {"rows": 65536, "codes": 64} if QUICK else {"rows": 65536, "codes": 2048}
    found = _memory(op, dtype, columns=2 * sizes["codes"], **sizes)
    value = Spread.of([found["peak_beyond_gradients"] / (16 * sizes["rows"])])
    target = Target("<=", 1.0) if op == "loss" else None
    report(Row(f"{op} {SHORT[dtype]} T={sizes['rows']}", "peak beyond the gradient / 16 B a row", value, target=target))


@MEMORY
@NAMES
@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_linear_form_needs_an_eighth_of_materialised_logits(report, head, dtype):
    if dtype == "bfloat16" and not losses.fast_bfloat16():
        pytest.skip("torch has no kernel for products of bfloat16 on this CPU: one step takes an hour")
    # The width is small, for the time of the products: it changes nothing beyond the gradients.
    sizes = {"rows": 4096, "width": 64, **({"codes": 256, "columns": 2048} if QUICK else {"codes": 8192, "columns": 65536})}
    linear, whole = (_memory(f"{form}-{head}", dtype, **sizes) for form in ("linear", "materialised"))
    ratio = Spread.of([linear["peak_beyond_gradients"] / whole["peak_beyond_gradients"]])
    title = f"linear {SHORT[dtype]} T={sizes['rows']}, {head} head"
    report(Row(title, "peak / materialised, beyond the gradients", ratio, target=Target("<=", 0.125)))
