"""SPAM's speed and memory: ``pytest bench/test_spam.py`` prints every ratio with its control and target.

``--csv PATH`` writes them, ``--strict-targets`` fails on a missed one, ``LADDERKERN_BENCH_QUICK=1`` is a smoke test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from harness import Measured, Plan, Row, Spread, Target, measure
from peers import Problem

QUICK = os.environ.get("LADDERKERN_BENCH_QUICK", "0") not in ("", "0")
SHAPE, TENSORS = ((64, 1024), 2) if QUICK else ((2048, 2048), 8)
LARGE = Problem((SHAPE,) * TENSORS)  # 32 M parameters in rows of 2048
LARGE_BF16 = Problem((SHAPE,) * TENSORS, torch.bfloat16)
SMALL = Problem(((64, 64),) * (10 if QUICK else 200))

# Rebuilds come in twice the number of peers, so that each is created first and last, and before and after each other.
LARGE_ROUNDS = 2 if QUICK else 6
SLOW = Plan(rebuilds=1, rounds=2) if QUICK else Plan(rebuilds=4, rounds=2)

# Bytes a float32 parameter: the least that a step can move between memory and caches of 64-byte lines.
DENSE = 28  # reads p, g, m, v; writes p, m, v
DENSE_BF16 = 22  # p and g are bfloat16, m and v float32
ELEMENT = 16  # every line of p and g holds a selected element; a quarter of m and v
ROW = 7  # a quarter of all
ROW_DECAYED = 13  # and the other rows of p read and written


def _plan(builders: dict[str, Any]) -> Plan:
    return Plan(rebuilds=1 if QUICK else 2 * len(builders), rounds=LARGE_ROUNDS, untimed=1)


def _share(m: Measured, name: str, bytes_per_param: int) -> float:
    """Share of the memory limit that a peer reaches: 28 bytes in the time of the plain loop would be 1."""
    return m.ratio("plain loop", name).median * bytes_per_param / DENSE


def _headline(benchmark: Any, m: Measured, name: str) -> None:
    """Let pytest-benchmark time the measured optimizer, as it was built last, for its own JSON."""
    benchmark.pedantic(m.last[name].step, rounds=2 if QUICK else 10)
    m.last.clear()


def test_dense_fp32_is_as_fast_as_fused_adamw_and_as_a_plain_loop(benchmark, report):
    builders = {
        "SPAM": peers.spam(LARGE),
        "AdamW fused": peers.adamw(LARGE, fused=True),
        "SPAM again": peers.spam(LARGE),
        "plain loop": peers.plain_loop(LARGE),
    }
    m = measure(builders, _plan(builders))
    control = m.ratio("SPAM again", "SPAM")
    share = _share(m, "SPAM", DENSE)
    report(
        Row("fp32 dense", "SPAM / AdamW fused", m.ratio("SPAM", "AdamW fused"), control, share, Target("<=", 1.0)),
        Row("fp32 dense", "plain loop / SPAM", m.ratio("plain loop", "SPAM"), control, share, Target(">=", 0.95)),
        Row(
            "fp32 dense",
            "plain loop / AdamW fused",
            m.ratio("plain loop", "AdamW fused"),
            control,
            _share(m, "AdamW fused", DENSE),
        ),
    )
    _headline(benchmark, m, "SPAM")


def test_small_tensors_are_as_fast_as_fused_adamw(benchmark, report):
    builders = {
        "SPAM": peers.spam(SMALL),
        "AdamW fused": peers.adamw(SMALL, fused=True),
        "SPAM again": peers.spam(SMALL),
    }
    m = measure(builders, Plan(1, 2) if QUICK else Plan(rebuilds=6, rounds=20, steps=5, untimed=1))
    control, target = m.ratio("SPAM again", "SPAM"), Target("<=", 1.0)
    report(Row(_title(SMALL), "SPAM / AdamW fused", m.ratio("SPAM", "AdamW fused"), control, target=target))
    _headline(benchmark, m, "SPAM")


def _title(problem: Problem) -> str:
    return "fp32 dense" if problem is LARGE else f"{len(problem.shapes)} x 64x64"


def _others(problem: Problem) -> dict[str, Any]:
    builders = {
        "eager SPAM, density 1": peers.eager_spam(problem, 1.0),
        "eager SPAM, no density": peers.eager_spam(problem, None),
        "pytorch_optimizer SPAM": peers.kozistr_spam(problem),
        "AdamW foreach": peers.adamw(problem, foreach=True),
        "compiled SPAM": peers.compiled_spam(problem),
    }
    if QUICK:
        del builders["compiled SPAM"]  # compiling takes longer than all the rest
    return builders


@pytest.mark.parametrize(
    ("problem", "plan", "targets"),
    [
        (LARGE, SLOW, {"eager SPAM, density 1": Target(">=", 15.0), "eager SPAM, no density": Target(">=", 5.0)}),
        (SMALL, SLOW if QUICK else Plan(rebuilds=4, rounds=4, steps=3, untimed=1), {}),
    ],
    ids=["large", "small"],
)
def test_dense_fp32_is_many_times_faster_than_eager_and_compiled_spam(benchmark, report, problem, plan, targets):
    others = _others(problem)
    m = measure({"SPAM": peers.spam(problem), **others, "SPAM again": peers.spam(problem)}, plan)
    control, title = m.ratio("SPAM again", "SPAM"), _title(problem)
    report(*(Row(title, f"{o} / SPAM", m.ratio(o, "SPAM"), control, target=targets.get(o)) for o in others))
    _headline(benchmark, m, "SPAM")


def test_bf16_parameters_with_fp32_moments_take_less_time_than_fp32(benchmark, report):
    builders = {
        "bf16": peers.spam(LARGE_BF16),
        "fp32": peers.spam(LARGE),
        "bf16 again": peers.spam(LARGE_BF16),
        "plain loop": peers.plain_loop(LARGE),
    }
    m = measure(builders, _plan(builders))
    control, share = m.ratio("bf16 again", "bf16"), _share(m, "bf16", DENSE_BF16)
    report(Row("bf16 p and g", "SPAM bf16 / SPAM fp32", m.ratio("bf16", "fp32"), control, share, Target("<=", 0.85)))
    _headline(benchmark, m, "bf16")


@pytest.mark.parametrize(
    ("unit", "decay", "bytes_per_param", "target"),
    [
        ("element", 0.0, ELEMENT, Target("<=", 0.65)),
        ("row", 0.0, ROW, Target("<=", 0.35)),
        ("row", 0.1, ROW_DECAYED, Target("<=", 0.60)),
        ("element", 0.1, ELEMENT, None),
    ],
)
def test_density_of_a_quarter_saves_time(benchmark, report, unit, decay, bytes_per_param, target):
    options = {"density": 0.25, "mask_unit": unit, "weight_decay": decay}
    builders = {
        "SPAM": peers.spam(LARGE, **options),
        "AdamW fused": peers.adamw(LARGE, fused=True, weight_decay=decay),
        "SPAM again": peers.spam(LARGE, **options),
        "plain loop": peers.plain_loop(LARGE),
    }
    m = measure(builders, _plan(builders))
    title = f"density 0.25 {unit}" + (", decay" if decay else "")
    control, share = m.ratio("SPAM again", "SPAM"), _share(m, "SPAM", bytes_per_param)
    report(Row(title, "SPAM / AdamW fused", m.ratio("SPAM", "AdamW fused"), control, share, target))
    _headline(benchmark, m, "SPAM")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("unit", ["element", "row"])
def test_density_of_a_quarter_keeps_two_bytes_a_parameter_and_needs_no_more(report, unit):
    command = [sys.executable, str(Path(__file__).with_name("memory.py")), unit, "--tensors", str(TENSORS)]
    command += ["--shape", *map(str, SHAPE)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 3 << 20 <= found["probe"] <= 5 << 20, f"the measure does not see a block of 4 MB: {found}"
    least = 2 * found["params"] + 4 * found["tensors"]
    title, megabyte = f"density 0.25 {unit}", 1 << 20
    quantities = {
        "state / (2 B a parameter + 4 B a tensor)": (found["state"] / least, Target("<=", 1.0)),
        "kept beyond the state / 1 MB": (found["kept_beyond_state"] / megabyte, Target("<=", 1.0)),
        "peak of a step beyond the state / 1 MB": (found["peak_beyond_state"] / megabyte, Target("<=", 1.0)),
    }
    report(*(Row(title, name, Spread.of([value]), target=target) for name, (value, target) in quantities.items()))
