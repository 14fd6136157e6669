"""Triton kernels compiled for GPUs that are not there: each launch of a call, and what the machine code of its kernel holds."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Device(NamedTuple):
    """What decides how many warps one multiprocessor (of gfx942: one compute unit) can hold.

    Source: CUDA C++ Programming Guide, table of technical specifications per compute capability; CDNA 3 ISA guide.
    """

    target: GPUTarget
    warps: int
    blocks: int
    registers: int  # 32-bit, of all lanes together
    register_unit: int  # registers are given to a warp in multiples of this many a lane
    shared: int  # bytes for all blocks
    shared_per_block: int  # bytes that the system adds to each block


def _cuda(capability: int, warps: int, blocks: int, shared: int) -> Device:
    return Device(GPUTarget("cuda", capability, 32), warps, blocks, 65536, 8, shared * 1024, 1024)


DEVICES = {
    "sm_80": _cuda(80, 64, 32, 164),
    "sm_90": _cuda(90, 64, 32, 228),
    "sm_100": _cuda(100, 64, 32, 228),
    "sm_120": _cuda(120, 48, 24, 100),
    "gfx942": Device(GPUTarget("hip", "gfx942", 64), 32, 32, 4 * 512 * 64, 8, 64 * 1024, 0),
}


class Launch(NamedTuple):
    """A kernel as a launcher asked for it, and what it was compiled to."""

    kernel: str
    arguments: dict[str, Any]  # by keyword: constants and options
    compiled: Any  # triton's CompiledKernel


class Code(NamedTuple):
    """What the machine code of a kernel needs and holds."""

    threads: int
    registers: int  # a thread
    shared: int  # bytes a block
    spilled: int  # bytes a thread keeps in memory for want of registers
    loads: Counter  # of global memory, instructions by bytes a thread
    stores: Counter
    doubles: list[str]  # float64 instructions

    @property
    def narrow(self) -> int:
        """Accesses of global memory by less than 16 bytes a thread."""
        return sum(n for widths in (self.loads, self.stores) for width, n in widths.items() if width < 16)


class _AbsentDriver:
    """A driver of a device that is not there: enough to compile for it."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:  # kernels compiled before are found under the device
        return str(self._target)

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling_for(device: Device) -> Iterator[list[Launch]]:
    """Within, launches of Triton kernels only compile them, for ``device`` and as its launcher would; all are listed."""
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        launches.append(Launch(self.__name__, kwargs, compiled))
        return compiled

    hip = "absent" if device.target.backend == "hip" else None
    driver.set_active(_AbsentDriver(device.target))
    try:
        with mock.patch.object(JITFunction, "run", compile_only), mock.patch.object(torch.version, "hip", hip):
            yield launches
    finally:
        driver.set_active(None)


def code_of(compiled: Any) -> Code:
    """Read the machine code of a compiled kernel."""
    threads = compiled.metadata.num_warps * compiled.metadata.target.warp_size
    read = _amdgcn if "amdgcn" in compiled.asm else _sass
    return read(compiled, threads)


def _sass(compiled: Any, threads: int) -> Code:
    cubin = next(path for path in compiled.metadata_group.values() if str(path).endswith(".cubin"))
    text = cuobjdump("--dump-resource-usage", "-sass", cubin)
    return sass_code(text, text, threads, compiled.metadata.shared)


def sass_code(usage: str, sass: str, threads: int, shared: int) -> Code:
    """The code of one kernel from what ptxas noted about registers and memory, and from its disassembly."""
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", sass, re.MULTILINE)
    assert "EXIT" in instructions, "no machine code was read"
    doubles = [name for name in instructions if re.match(r"D(ADD|FMA|MUL|MNMX|SET|SETP)\b", name) or ".F64" in name]
    loads, stores = (
        Counter(_sass_width(name) for name in instructions if name.split(".")[0] == kind) for kind in ("LDG", "STG")
    )
    return Code(threads, registers, shared, stack + local, loads, stores, doubles)


def _sass_width(name: str) -> int:
    """Bytes that an access moves: LDG.E.128.CONSTANT 16, LDG.E.U16 2, LDG.E 4."""
    bits = re.search(r"\.[US]?(8|16|64|128|256)\b", name)
    return int(bits[1]) // 8 if bits else 4


def cuobjdump(*arguments: Any) -> str:
    """What NVIDIA's tool prints; Triton brings it."""
    done = subprocess.run([triton.knobs.nvidia.cuobjdump.path, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


_AMD_BYTES = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}


def _amdgcn(compiled: Any, threads: int) -> Code:
    text = compiled.asm["amdgcn"]
    fields = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    instructions = re.findall(r"^\t([a-z]\w+)", text, re.MULTILINE)
    assert "s_endpgm" in instructions, "no machine code was read"
    spilled = fields["private_segment_fixed_size"]  # scalar registers spill into lanes of vector registers, not into memory
    doubles = [name for name in instructions if name.startswith("v_") and "f64" in name]
    loads, stores = (Counter(_amdgcn_widths(instructions, kind)) for kind in ("load", "store"))
    return Code(threads, fields["vgpr_count"], compiled.metadata.shared, spilled, loads, stores, doubles)


def _amdgcn_widths(instructions: list[str], kind: str) -> Iterator[int]:
    """Bytes of each access: global_load_dwordx4 16, buffer_store_short_d16_hi 2."""
    for name in instructions:
        access = re.match(rf"(?:global|buffer|flat)_{kind}_(\w*?(?:byte|short|dword))(?:x(\d))?", name)
        if access:
            yield _AMD_BYTES[access[1]] * int(access[2] or 1)


def occupancy(code: Code, device: Device) -> float:
    """Share of the warps that a multiprocessor can hold which it holds of this kernel alone."""
    warps = code.threads // device.target.warp_size
    unit = device.register_unit
    registers = -(-max(code.registers, 1) // unit) * unit * device.target.warp_size
    by_registers = device.registers // registers // warps
    by_shared = device.shared // max(code.shared + device.shared_per_block, 1)
    return min(device.blocks, device.warps // warps, by_registers, by_shared) * warps / device.warps
