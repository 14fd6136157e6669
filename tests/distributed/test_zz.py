import pytest, torch, torch.distributed as dist
@pytest.mark.ranks(2, 3)
def test_a():
    dist.barrier()
@pytest.mark.ranks(2, 3)
@pytest.mark.parametrize("mode", ["x","y"])
def test_b(world_size, mode):
    assert dist.get_world_size() == world_size
    if mode == "y" and dist.get_rank() == 1: raise ValueError("no")
    dist.barrier()
def f(a): return a + dist.get_rank()
def test_c(on_ranks): assert on_ranks(2, f, a=3) == [3,4]
