"""The same bits for every number of threads, every CPU tier and every run."""

import os
import subprocess
import sys

import torch

import ladderkern
from ladderkern.testing import fingerprint_of, floats

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KINDS = [{}, {"density": 0.25}, {"density": 0.5, "mask_unit": "row"}]
SHAPES = [(160, 256), (37, 33), (7,), (48, 3, 16)]  # the first is large enough to be split among threads


def fingerprint(kinds=KINDS, shapes=SHAPES, steps=5):
    """SHA-256 of parameters and moments past a reset, over all dtypes and masks."""
    held = []
    for dtype in FLOATS:
        for moments in (torch.float32, torch.bfloat16):
            for kind in kinds:
                params = [torch.nn.Parameter(floats(shape, dtype, seed=1)) for shape in shapes]
                schedule = {"reset_interval": 4, "warmup_steps": 2, "unclipped_steps": 1, "lr": 0.01, "weight_decay": 0.1}
                optimizer = ladderkern.SPAM(params, state_dtype=moments, **schedule, **kind)
                for n in range(steps):
                    for p in params:
                        p.grad = floats(p.shape, dtype, seed=2 + n)
                        p.grad.view(-1)[::5] *= 200
                    optimizer.step()
                for p in params:
                    held += [p, optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]]
    return fingerprint_of(held)


def test_results_do_not_depend_on_the_number_of_threads(backend, assert_same_for_threads):
    assert_same_for_threads(lambda: fingerprint([{"density": 0.25}], SHAPES[:2], steps=2), 1, 2)


def test_results_do_not_depend_on_the_rng_state(backend):
    first = fingerprint(KINDS, SHAPES[1:], steps=2)
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert fingerprint(KINDS, SHAPES[1:], steps=2) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_rounds_otherwise(backend):
    def moments(seed):
        p = torch.nn.Parameter(floats((256,), seed=1))
        optimizer = ladderkern.SPAM([p], state_dtype=torch.bfloat16, seed=seed)
        p.grad = floats((256,), seed=2)
        optimizer.step()
        return optimizer.state[p]["exp_avg"]

    assert torch.equal(moments(1), moments(1))
    assert not torch.equal(moments(1), moments(2))


def test_every_cpu_tier_gives_the_same_bits(tier, fingerprint_of_tier):
    in_use, bits = fingerprint_of_tier(tier)
    assert in_use == tier
    assert bits == fingerprint_of_tier(None)[1]


def test_a_tier_that_does_not_exist_is_named_where_it_matters(native):
    command = """
import torch, ladderkern
p = torch.nn.Parameter(torch.ones(2))
p.grad = torch.ones(2)
try:
    with ladderkern.backend("native"):
        ladderkern.SPAM([p]).step()
except RuntimeError as error:
    print(error)
print(p.tolist(), ladderkern.info()["native"])
"""
    environment = {**os.environ, "LADDERKERN_CPU_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error, status = done.stdout.splitlines()
    assert "LADDERKERN_CPU_ISA" in error
    assert "baseline, avx2, avx512" in error
    assert "mmx" in error
    assert status.startswith("[1.0, 1.0] ")
    assert "mmx" in status
