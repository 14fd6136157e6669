"""Runs an example as its reader runs it, and judges the losses that it prints."""

import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def output_of(name, *launcher):
    """What ``python <launcher> examples/<name>`` prints."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, str(EXAMPLES / name)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "image logits of a row" not in ran.stderr  # the warning that nothing is learnt
    return ran.stdout


def falls(values, to):
    """All finite, and the last at most ``to`` times the first."""
    return all(math.isfinite(value) for value in values) and values[-1] <= to * values[0]
