"""Build ladderkern: setuptools for the Python part, CMake for the native library.

This file is the build backend named in pyproject.toml and, run by setuptools, the setup script.

LADDERKERN_BUILD_NATIVE  1 (default) builds the native library: a py3-none-<platform> wheel that serves every Python
                         and every torch >= 2.11. 0 builds the pure-Python package: py3-none-any.
LADDERKERN_BUILD_TESTS   1 also builds the pybind11 modules of tests/native into build/tests. Never part of a wheel.
"""

import functools
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LIBRARY = Path("ladderkern", "lib", "libladderkern_native.so")
CMAKE_BUILD = ROOT / "build" / "cmake"
OLDEST_TORCH = (2, 11)

try:
    from setuptools import Extension, build_meta, setup
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_ext import build_ext
except ImportError:
    raise SystemExit(
        "ladderkern: the build needs setuptools here: pip install 'setuptools>=77', then pip install --no-build-isolation ."
    ) from None


def build_native() -> bool:
    value = os.environ.get("LADDERKERN_BUILD_NATIVE", "1")
    if value not in ("0", "1"):
        raise SystemExit(f"ladderkern: LADDERKERN_BUILD_NATIVE must be 0 or 1, got {value!r}")
    return value == "1"


def find_tool(name: str) -> str | None:
    """A program of this interpreter's environment (active or not), else the one on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def torch_is_recent() -> bool:
    try:
        major, minor = importlib.metadata.version("torch").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= OLDEST_TORCH


def check_tools() -> None:
    """Stop with one line that says what to type, when the native build lacks a tool."""
    missing = [name for name in ("cmake", "ninja") if find_tool(name) is None]
    if not torch_is_recent():
        missing.append("torch>={}.{}".format(*OLDEST_TORCH))
    if missing:
        wanted = " ".join(f"'{name}'" if ">" in name else name for name in missing)
        raise SystemExit(
            f"ladderkern: the native build needs {' and '.join(missing)} here: pip install {wanted}, "
            "then pip install --no-build-isolation . (or set LADDERKERN_BUILD_NATIVE=0 for the pure-Python package)"
        )


def run_cmake() -> Path:
    """Configure and build incrementally in build/cmake; return the library."""
    check_tools()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    torch_root = Path(importlib.util.find_spec("torch").origin).parent
    configure = [
        *(cmake, "-S", ROOT, "-B", CMAKE_BUILD, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DTORCH_ROOT={torch_root}",
    ]
    if os.environ.get("LADDERKERN_BUILD_TESTS", "0") == "1":
        configure += ["-DLADDERKERN_BUILD_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    else:
        configure += ["-DLADDERKERN_BUILD_TESTS=OFF"]
    for command in (configure, [cmake, "--build", CMAKE_BUILD]):
        if subprocess.run(command).returncode != 0:
            raise SystemExit("ladderkern: the native build failed; the compiler's or CMake's message stands above")
    return CMAKE_BUILD / LIBRARY.name


class BuildNative(build_ext):
    """Let CMake build the one native library, and put it where the package looks for it."""

    def run(self):
        library = run_cmake()
        target = (ROOT if self.inplace else Path(self.build_lib)) / LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file in one move: a process that has the old library loaded keeps it whole.
        fresh = target.with_suffix(".new")
        shutil.copyfile(library, fresh)
        os.replace(fresh, target)

    def get_outputs(self):
        return [str(Path(self.build_lib) / LIBRARY)]

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return ["CMakeLists.txt", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/*/*")))]


class AnyPythonWheel(bdist_wheel):
    """The native library has no PyInit and no Python symbol: its wheel fits every Python of the platform."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


def checked(hook):
    """The hook, after a look at the tools: before pip resolves (and downloads) what the package depends on."""

    @functools.wraps(hook)
    def run(*args, **kwargs):
        if build_native():
            check_tools()
        return hook(*args, **kwargs)

    return run


get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
build_sdist = build_meta.build_sdist
prepare_metadata_for_build_wheel = checked(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = checked(build_meta.prepare_metadata_for_build_editable)
build_wheel = checked(build_meta.build_wheel)
build_editable = checked(build_meta.build_editable)

if __name__ == "__main__":
    native = build_native()
    setup(
        ext_modules=[Extension("ladderkern.lib.native", sources=[])] if native else [],
        cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
    )
