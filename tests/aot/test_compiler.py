"""What the audit of machine code must see: planted spills, float64, narrow and wide accesses, on both makers' GPUs."""

import pytest
import torch
import triton
import triton.language as tl
from compiler import DEVICES, Code, code_of, compiling_for, occupancy


@triton.jit
def _scale(p_x, p_out, factor, STEP: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o * STEP) * factor)


@triton.jit
def _normed(p_x, p_y, p_out, BLOCK: tl.constexpr):
    """All elements have to wait for the sum."""
    o = tl.arange(0, BLOCK)
    b_x, b_y = tl.load(p_x + o), tl.load(p_y + o)
    total = tl.sum(b_x * b_y, axis=0)
    tl.store(p_out + o, b_x * total + b_y)


@pytest.fixture(params=["sm_90", "gfx942"])
def device(request):
    return DEVICES[request.param]


def code(device, kernel, *arguments, **options):
    with compiling_for(device) as launches:
        kernel[(1,)](*arguments, **options, enable_fp_fusion=False)
    (launch,) = launches
    assert launch.kernel == kernel.__name__
    return code_of(launch.compiled)


def test_wide_and_narrow_accesses(device):
    x = torch.empty(8192)
    threads = 4 * device.target.warp_size
    wide = code(device, _scale, x, x, 2.0, STEP=1, BLOCK=4 * threads, num_warps=4)
    assert (wide.threads, wide.loads, wide.stores, wide.narrow) == (threads, {16: 1}, {16: 1}, 0)
    apart = code(device, _scale, x, x, 2.0, STEP=3, BLOCK=4 * threads, num_warps=4)
    assert apart.loads == {4: 4}
    assert apart.narrow >= 4
    if device.target.backend == "cuda":  # AMD's GPUs load 16 bytes from any multiple of 4
        assert code(device, _scale, x[1:], x, 2.0, STEP=1, BLOCK=4 * threads, num_warps=4).loads == {4: 4}
    half = x.to(torch.bfloat16)
    assert code(device, _scale, half, half, 2.0, STEP=3, BLOCK=2 * threads, num_warps=4).loads == {2: 2}


def test_float64_instructions(device):
    x = torch.empty(2048)
    options = {"STEP": 1, "BLOCK": 1024, "num_warps": 4}
    assert not code(device, _scale, x, x, 2.0, **options).doubles
    assert code(device, _scale, x.double(), x.double(), 2.0, **options).doubles


def test_spills(device):
    x = torch.empty(16384)
    assert code(device, _normed, x, x, x, BLOCK=1024, num_warps=4).spilled == 0
    assert code(device, _normed, x, x, x, BLOCK=16384, num_warps=1).spilled > 0


def test_nothing_is_left_behind():
    with compiling_for(DEVICES["gfx942"]):
        assert torch.version.hip
    assert torch.version.hip is None


@pytest.mark.parametrize(
    ("registers", "shared", "expected"),
    [(32, 0, 1.0), (33, 0, 0.75), (64, 0, 0.5), (128, 0, 0.25), (32, 113 * 1024, 0.25), (255, 0, 0.125)],
)
def test_occupancy_of_256_threads_on_an_h100(registers, shared, expected):
    """As NVIDIA's occupancy calculator has it."""
    of = Code(256, registers, shared, 0, {}, {}, [])
    assert occupancy(of, DEVICES["sm_90"]) == expected
