"""Processes whose compiled code is built with AddressSanitizer and UBSan."""

import os
import subprocess
from pathlib import Path

# What `make sanitize` builds: a copy of the package with the native library in it. A process that starts here imports it.
SANITIZED = Path(__file__).parents[1] / "build" / "sanitized" / "lib"


def sanitizer_environment(**others: str) -> dict[str, str]:
    """What such a process needs: the sanitizers' runtime first, and beside it the one that throws."""
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip() for name in names]
    return os.environ | {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"} | others
