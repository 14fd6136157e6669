"""The native ops give the same bits in every CPU tier, for every number of threads, and whatever the other rows are."""

import os
import subprocess
import sys

import torch

from ladderkern.discrepancy import ops
from ladderkern.testing import fingerprint_of, floats

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ROWS, CODES, START, COLUMNS = 40, 1100, 5, 2321  # columns are no multiple of 16, neither before, in nor behind the image


def results(dtype, table, metric, smoothing, rows=slice(None)):
    """What the four ops return for some rows of one input."""
    logits = floats((ROWS, COLUMNS), dtype, seed=1)[rows]
    labels = ((torch.arange(ROWS) * 389) % COLUMNS)[rows]
    labels = torch.where(labels % 7 == 0, -100, labels)
    W = torch.float64 if dtype == torch.float64 else torch.float32
    grads = [floats((ROWS,), W, seed=seed)[rows] for seed in (2, 3)]
    common = {"metric": metric, "offset": 1.75, "scale": 0.5, "image_start": START}
    joint = {**common, "ignore_index": -100, "label_smoothing": smoothing}
    inputs = (logits, labels, table)
    saved = ops.TOKEN_DISCREPANCY.default(*inputs, **common)
    out = [*saved, ops.TOKEN_DISCREPANCY_BACKWARD.default(grads[1], *inputs, *saved, **common)]
    ce, *saved = ops.CROSS_ENTROPY_DISCREPANCY.default(*inputs, **joint)
    return [*out, ce, *saved, ops.CROSS_ENTROPY_DISCREPANCY_BACKWARD.default(*grads, *inputs, *saved, **joint)]


def cases():
    for dtype in FLOATS:
        for table in FLOATS:
            yield dtype, floats((CODES, CODES), table, seed=4), 0, 0.1
        for metric in (1, 2, 3):
            yield dtype, floats((CODES, 6), seed=5), metric, 0.0


def fingerprint():
    """SHA-256 of all that the ops return over dtypes, tables and metrics."""
    return fingerprint_of(t for case in cases() for t in results(*case))


def test_results_do_not_depend_on_the_number_of_threads(native, assert_same_for_threads):
    assert_same_for_threads(fingerprint, 1, 2, 3)


def test_a_row_does_not_depend_on_the_others(native):
    for case in cases():
        together = results(*case)
        for row in (0, 17, ROWS - 1):
            for part, whole in zip(results(*case, rows=slice(row, row + 1)), together, strict=True):
                assert torch.equal(part.view(torch.uint8), whole[row : row + 1].contiguous().view(torch.uint8))


def test_every_cpu_tier_gives_the_same_bits(tier, fingerprint_of_tier):
    in_use, bits = fingerprint_of_tier(tier)
    assert in_use == tier
    assert bits == fingerprint_of_tier(None)[1]


def test_a_tier_that_does_not_exist_is_named_before_any_work(native):
    command = f"""
import runpy, torch
cases = runpy.run_path({__file__!r})
try:
    cases["results"](*next(cases["cases"]()))
except RuntimeError as error:
    print(error)
"""
    environment = {**os.environ, "LADDERKERN_CPU_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LADDERKERN_CPU_ISA" in done.stdout
    assert "mmx" in done.stdout
