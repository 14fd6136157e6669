"""Install a wheel into clean environments and run the quick tests in each: ``python check_wheel.py WHEEL`` prints a table.

One environment for each Python and torch, made in a folder, used and removed, one after the other: a CUDA build of torch takes
some gigabytes. The tests run on a copy, where no source tree is in reach: what is imported is what the wheel holds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What could differ between releases of Python and torch: registration, opcheck, autograd, and the published numbers.
QUICK = tuple(
    str(path.relative_to(ROOT)) for name in ("ops", "published") for path in sorted(ROOT.glob(f"tests/*/test_{name}.py"))
)

LOOK = """
import sys, ladderkern
assert ladderkern.__file__.startswith(sys.prefix), ladderkern.__file__
found = ladderkern.info()
print(found["torch"].split(" (")[0], "|", found["native"])
"""
HEADING = f"{'python':8}{'torch':14}{'native library':26}{'seconds':>8}  quick tests"


def find_python(version: str) -> Path | None:
    """An interpreter of that minor version: on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*sorted(pyenv.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
    for python in filter(None, found):
        asked = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.stdout.strip() == version:
            return Path(python)
    return None


def check(wheel: Path, version: str, torch: str, folder: Path) -> tuple[str, bool]:
    """One line of the table, and whether nothing in it is wrong; an interpreter or a torch that is not to be had is not."""
    python = find_python(version)
    if python is None:
        return f"{version:8}{torch:14}skipped: no such Python here", True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        subprocess.run([python, "-m", "venv", folder / "env"], check=True)
        inside = folder / "env" / "bin" / "python"
        install = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary", ":all:"]
        done = subprocess.run([*install, f"torch=={torch}.*"], capture_output=True, text=True)
        if done.returncode and "No matching distribution found for torch" in done.stderr:
            return f"{version:8}{torch:14}skipped: no torch wheel for this Python", True
        done = (
            done
            if done.returncode
            else subprocess.run([*install, wheel, "pytest", "hypothesis"], capture_output=True, text=True)
        )
        if done.returncode:
            return f"{version:8}{torch:14}FAILED to install: {done.stderr.strip().splitlines()[-1]}", False
        return run_tests(inside, version, torch, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_tests(python: Path, version: str, torch: str, folder: Path) -> tuple[str, bool]:
    """The quick tests on a copy in the folder, by the environment's interpreter."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    unset = ("PYTHONPATH", "TRITON_INTERPRET", "LADDERKERN_BACKEND", "LADDERKERN_CPU_ISA")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    run = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    look = subprocess.run([python, "-c", LOOK], **run)
    if look.returncode:
        return f"{version:8}{torch:14}FAILED to import: {look.stderr.strip().splitlines()[-1]}", False
    found, native = look.stdout.strip().split(" | ")
    start = time.monotonic()
    tests = subprocess.run([python, "-m", "pytest", "-q", "-m", "not interpreter", *QUICK], **run)
    seconds, summary = time.monotonic() - start, re.sub(r" in [\d.]+s.*", "", tests.stdout.strip().splitlines()[-1])
    if tests.returncode:
        print(tests.stdout[-6000:], tests.stderr[-2000:], file=sys.stderr)
    good = tests.returncode == 0 and native.startswith("loaded")
    return f"{version:8}{found:14}{native:26}{seconds:8.0f}  {summary.strip('= ')}{'' if good else '  FAILED'}", good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pythons", nargs="+", default=["3.10", "3.11", "3.12", "3.13"])
    parser.add_argument("--torches", nargs="+", default=["2.11", "2.13", "2.14"], help="minor versions")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "wheel-check")
    options = parser.parse_args()
    print(HEADING, flush=True)
    good = True
    for torch in options.torches:
        for version in options.pythons:
            line, fine = check(options.wheel.resolve(), version, torch, options.folder.resolve())
            print(line, flush=True)
            good &= fine
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
