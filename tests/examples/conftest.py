"""Tests of examples share ``example_runs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours
