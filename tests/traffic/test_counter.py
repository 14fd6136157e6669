"""The counter of memory traffic itself, on kernels whose traffic is known."""

import pytest
import torch

from ladderkern.testing import counted_traffic

pytestmark = pytest.mark.interpreter


def test_what_is_counted():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(p_x, p_weight, p_out, n, BLOCK: tl.constexpr):
        o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        b_x = tl.load(p_x + o, mask=o < n, other=0.0) + tl.load(p_x + o, mask=o < n, other=0.0)
        tl.store(p_out + o, b_x * tl.load(p_weight), mask=o < n)

    x, weight, out = torch.ones(37), torch.ones(1, dtype=torch.float64), torch.zeros(37)
    with counted_traffic(shared=["p_weight"]) as launches:
        kernel[(3,)](x, weight, out, 37, BLOCK=16)
    (launch,) = launches
    assert (out == 2).all()
    assert (launch.kernel, launch.programs) == ("kernel", 3)
    assert launch.loaded == 37 * 4 + 8
    assert launch.reloaded == 37 * 4 + 2 * 8
    assert launch.stored == 37 * 4
    assert launch.moved == 32 * (5 + 1 + 5)


def test_atomic_operations_are_refused():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(p):
        tl.atomic_add(p, 1.0)

    with counted_traffic(), pytest.raises(Exception, match="atomic operations are not counted"):
        kernel[(1,)](torch.zeros(1))
    kernel[(1,)](torch.zeros(1))


def test_strided_access_shows_in_the_sectors():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(p_x, p_out, BLOCK: tl.constexpr):
        o = tl.arange(0, BLOCK)
        tl.store(p_out + o, tl.load(p_x + 8 * o))

    with counted_traffic() as launches:
        kernel[(1,)](torch.zeros(128), torch.zeros(16), BLOCK=16)
    assert launches[0].loaded == 16 * 4
    assert launches[0].moved == 16 * 32 + 16 * 4
