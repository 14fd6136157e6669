"""What is built: symbols of the native library, tags and contents of wheels, and what a missing tool makes it say."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools

import ladderkern

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(ladderkern.__file__).parent / "lib" / "libladderkern_native.so"
TORCH_C_SHIM = re.compile(r"(aoti_torch|torch)_\w+$")
TOOLCHAIN = re.compile(r"\S+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$")
WEAK_BY_DEFAULT = re.compile(r"(_ITM_\w+|__gmon_start__|__cxa_finalize)(@\S+)?$")

# Small enough to compile in a second; the wheel around it is the real one.
STAND_IN_SOURCES = {
    "csrc/cpu/feature.cpp": "namespace LK_ISA { int answer() { return 42; } }\n",
    "csrc/cpu/dispatch.cpp": "namespace baseline { int answer(); }\nint answer() { return baseline::answer(); }\n",
    "csrc/bind/native.cpp": 'int answer();\nextern "C" __attribute__((visibility("default"))) int bound() '
    "{ return answer(); }\n",
}


@pytest.fixture
def library():
    if not LIBRARY.exists():
        pytest.skip("the native library is not built: this is a pure-Python installation")
    return LIBRARY


@pytest.fixture
def source_tree(tmp_path):
    """The files that a build reads, without csrc, and with the library that an editable install leaves behind."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "ladderkern", tree / "ladderkern", ignore=shutil.ignore_patterns("__pycache__", "lib"))
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    left_behind = tree / "ladderkern" / "lib" / LIBRARY.name
    left_behind.parent.mkdir()
    left_behind.write_bytes(b"from an editable install")
    return tree


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pip_wheel(tree, destination, **environment):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", destination, tree]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = destination.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return wheel.name, {name: archive.read(name) for name in archive.namelist() if name.startswith("ladderkern/")}


def test_library_needs_only_the_c_shim_of_torch_and_the_toolchain(library):
    foreign = []
    for line in output_of("nm", "-D", "--undefined-only", library).splitlines():
        kind, symbol = line.split()
        allowed = TORCH_C_SHIM.match(symbol) or TOOLCHAIN.match(symbol)
        if not (allowed or (kind == "w" and WEAK_BY_DEFAULT.match(symbol))):
            foreign.append(line)
    assert foreign == []


def test_library_is_no_python_module(library):
    symbols = output_of("nm", "-D", library)
    assert "PyInit" not in symbols
    assert re.search(r"\b_?Py[A-Z_]\w+", symbols) is None


def test_library_holds_no_path_of_the_build_machine(library):
    dynamic = output_of("readelf", "-d", library)
    assert "NEEDED" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert os.fsencode(ROOT) not in library.read_bytes()


@pytest.mark.parametrize(
    ("has_setuptools", "torch_version", "tools", "missing"),
    [
        (False, None, [], ["setuptools"]),
        (True, None, [], ["cmake", "ninja", "torch"]),
        (True, "2.10.0", ["cmake", "ninja"], ["torch"]),
        (True, "2.13.0+cpu", [], ["cmake", "ninja"]),
        (True, "2.13.0+cpu", ["ninja"], ["cmake"]),
        (True, "2.13.0+cpu", ["cmake"], ["ninja"]),
    ],
)
@pytest.mark.parametrize("hook", ["build_wheel", "build_editable"])
def test_missing_tool_stops_the_build_with_one_line(tmp_path, hook, has_setuptools, torch_version, tools, missing):
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    packages, programs = tmp_path / "packages", tmp_path / "programs"
    packages.mkdir()
    programs.mkdir()
    if has_setuptools:
        for name in ("setuptools", "_distutils_hack"):
            (packages / name).symlink_to(Path(setuptools.__file__).parents[1] / name)
    if torch_version:
        metadata = packages / f"torch-{torch_version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch_version}\n")
    for tool in tools:
        (programs / tool).write_text("#!/bin/sh\n")
        (programs / tool).chmod(0o755)

    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-c", f"import setup; setup.{hook}('nowhere')"],
        cwd=ROOT,
        env={"PATH": str(programs), "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert done.stdout == ""
    reason, to_type = line.split("pip install ", 1)
    assert "pip install --no-build-isolation ." in to_type
    for name in ("setuptools", "cmake", "ninja", "torch"):
        assert (name in reason) == (name in missing)
        assert (name in to_type) == (name in missing)


def test_pure_wheel_fits_every_platform_and_holds_no_library(source_tree, tmp_path):
    name, files = pip_wheel(source_tree, tmp_path / "dist", LADDERKERN_BUILD_NATIVE="0")
    assert name == f"ladderkern-{ladderkern.__version__}-py3-none-any.whl"
    assert "ladderkern/__init__.py" in files
    assert "ladderkern/py.typed" in files
    assert {"NOTICE", "processbench_math.npz"} <= {name.removeprefix("ladderkern/prm/data/") for name in files}
    assert [name for name in files if name.endswith(".so")] == []


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: only the pure-Python package can be built")
def test_native_wheel_fits_every_python_and_holds_the_library_just_built(source_tree, tmp_path):
    for name, text in STAND_IN_SOURCES.items():
        path = source_tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    name, files = pip_wheel(source_tree, tmp_path / "dist", LADDERKERN_BUILD_NATIVE="1", LADDERKERN_BUILD_TESTS="0")
    assert re.fullmatch(rf"ladderkern-{re.escape(ladderkern.__version__)}-py3-none-(?!any)\w+\.whl", name)
    assert "ladderkern/__init__.py" in files
    libraries = [name for name in files if name.endswith(".so")]
    assert libraries == ["ladderkern/lib/libladderkern_native.so"]
    assert b"bound" in files[libraries[0]]


def test_build_switch_takes_only_0_and_1():
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"LADDERKERN_BUILD_NATIVE": "yes"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["ladderkern: LADDERKERN_BUILD_NATIVE must be 0 or 1, got 'yes'"]
