"""Build ladderkern: setuptools for the Python part, CMake for the native library.

This file is the build backend named in pyproject.toml and, run by setuptools, the setup script.

LADDERKERN_BUILD_NATIVE  1 (default) builds the native library: a py3-none-<platform> wheel that serves every Python
                         and every torch >= 2.11. 0 builds the pure-Python package: py3-none-any.
LADDERKERN_BUILD_CUDA    auto (default) builds the CUDA library too where nvcc is: on PATH, in CUDA_HOME, or named by CUDACXX.
                         1 makes a missing nvcc an error, 0 builds none. No GPU is needed.
LADDERKERN_CUDA_ARCHS    its GPU architectures in CMake's notation, 80-real;90-real;100 if not given.
LADDERKERN_BUILD_TESTS   1 also builds the pybind11 modules of tests/native and tests/emulation into build/tests. Never part
                         of a wheel. LADDERKERN_BUILD_SANITIZED=1 builds the latter with sanitizers as well.
LADDERKERN_SANITIZE      1 builds the native library with AddressSanitizer and UBSan, in build/sanitized; for build --build-lib
                         alone (make sanitize), since it works in processes that load the sanitizers' runtime first.
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
FOLDER = Path("ladderkern", "lib")
NATIVE, CUDA = FOLDER / "libladderkern_native.so", FOLDER / "libladderkern_cuda.so"
OLDEST_TORCH = (2, 11)

try:
    from setuptools import Extension, build_meta, setup
    from setuptools.command.bdist_wheel import bdist_wheel
    from setuptools.command.build_ext import build_ext
except ImportError:
    raise SystemExit(
        "ladderkern: the build needs setuptools here: pip install 'setuptools>=77', then pip install --no-build-isolation ."
    ) from None


def switch(name: str, default: str, *others: str) -> str:
    value = os.environ.get(name, default)
    if value not in ("0", "1", *others):
        raise SystemExit(f"ladderkern: {name} must be {', '.join(['0', *others])} or 1, got {value!r}")
    return value


SANITIZE = switch("LADDERKERN_SANITIZE", "0") == "1"
CMAKE_BUILD = ROOT / "build" / ("sanitized/cmake" if SANITIZE else "cmake")


def build_native() -> bool:
    return switch("LADDERKERN_BUILD_NATIVE", "1") == "1"


def find_tool(name: str) -> str | None:
    """A program of this interpreter's environment (active or not), else the one on PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def torch_is_recent() -> bool:
    try:
        major, minor = importlib.metadata.version("torch").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= OLDEST_TORCH


def find_nvcc() -> str | None:
    """The CUDA compiler that LADDERKERN_BUILD_CUDA asks for, if any."""
    wanted = switch("LADDERKERN_BUILD_CUDA", "auto", "auto")
    if wanted == "0":
        return None
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = ["nvcc", *(f"{home}/bin/nvcc" for home in [*homes, "/usr/local/cuda"])]
    named = os.environ.get("CUDACXX")
    nvcc = next(filter(None, map(shutil.which, [named] if named else places)), None)
    if nvcc is None and wanted == "1":
        raise SystemExit(
            "ladderkern: LADDERKERN_BUILD_CUDA=1 needs nvcc: put it on PATH, or name its toolkit by CUDA_HOME "
            "(without LADDERKERN_BUILD_CUDA=1 the package is built without the CUDA library: Triton then serves GPUs)"
        )
    if nvcc is None:
        sys.stderr.write("ladderkern: no nvcc here: built without the CUDA library, Triton serves GPUs\n")
    return nvcc


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


def run_cmake() -> list[Path]:
    """Configure and build incrementally in build/cmake; return the libraries that were asked for, by their place in a wheel."""
    check_tools()
    nvcc = find_nvcc()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    torch_root = Path(importlib.util.find_spec("torch").origin).parent
    configure = [
        *(cmake, "-S", ROOT, "-B", CMAKE_BUILD, "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DTORCH_ROOT={torch_root}",
        f"-DLADDERKERN_BUILD_CUDA={'ON' if nvcc else 'OFF'}",
        f"-DLADDERKERN_SANITIZE={'ON' if SANITIZE else 'OFF'}",
        f"-DLADDERKERN_BUILD_SANITIZED={'ON' if switch('LADDERKERN_BUILD_SANITIZED', '0') == '1' else 'OFF'}",
    ]
    if nvcc:
        configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
        configure += [f"-DLADDERKERN_CUDA_ARCHS={archs}"] if (archs := os.environ.get("LADDERKERN_CUDA_ARCHS")) else []
    if os.environ.get("LADDERKERN_BUILD_TESTS", "0") == "1":
        configure += ["-DLADDERKERN_BUILD_TESTS=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    else:
        configure += ["-DLADDERKERN_BUILD_TESTS=OFF"]
    for command in (configure, [cmake, "--build", CMAKE_BUILD]):
        if subprocess.run(command).returncode != 0:
            raise SystemExit("ladderkern: the native build failed; the compiler's or CMake's message stands above")
    return [NATIVE, CUDA] if nvcc and (CMAKE_BUILD / CUDA.name).exists() else [NATIVE]


class BuildNative(build_ext):
    """Let CMake build the libraries, and put them where the package looks for them."""

    def run(self):
        root = ROOT if self.inplace else Path(self.build_lib)
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        self.built = run_cmake()
        for library in self.built:
            # A new file in one move: a process that has the old library loaded keeps it whole.
            fresh = (root / library).with_suffix(".new")
            shutil.copyfile(CMAKE_BUILD / library.name, fresh)
            os.replace(fresh, root / library)
        if CUDA not in self.built:  # one of an earlier build may not fit these sources
            (root / CUDA).unlink(missing_ok=True)

    def get_outputs(self):
        return [str(Path(self.build_lib) / library) for library in getattr(self, "built", [NATIVE])]

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
