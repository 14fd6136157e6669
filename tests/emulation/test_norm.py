"""The CUDA kernels of the residual norms on the CPU, by the tests of the Triton kernels."""

from types import SimpleNamespace

import emulated
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of inf - inf in the oracle
norms = emulated.triton_tests("ladder")
norms.OPS = SimpleNamespace(
    **{
        name: emulated.Overloads(getattr(torch.ops.ladderkern, name), getattr(emulated, name))
        for name in ("add_rms_norm", "add_rms_norm_backward", "rms_norm", "rms_norm_backward")
    }
)


def small_blocks(monkeypatch):
    """A warp a row, which then has more columns than registers hold; four rows a block."""
    monkeypatch.setattr(emulated, "NORM_PLAN", {"threads": 32, "block_rows": 4})


norms.small_blocks = small_blocks
globals().update(
    emulated.tests_of(
        norms,
        "test_rows_further_apart_than_32_bits",  # 4 GB, all of which would be copied
        "test_row_blocks_grow_with_the_rows",
        "test_nothing_is_written_beside_the_outputs",  # each call here looks at the guard bands
        "test_autograd_twice_from_one_graph",
        "test_opcheck",
        "test_bad_arguments_are_refused_by_name",
    )
)


@pytest.fixture(params=["as launched", "rows a block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "rows a block":
        monkeypatch.setattr(emulated, "NORM_PLAN", {"threads": 64, "block_rows": 4})
    if request.param == "many blocks":
        small_blocks(monkeypatch)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hidden", [136, 1000])
def test_every_order_of_threads_gives_the_same_bits(seed, hidden, monkeypatch):
    def run():
        case = norms.make(13, hidden, torch.bfloat16, "two weights")
        normed, stream, rstd = norms.forward(case)
        grad_x, grad_weights = norms.backward(case, stream, rstd)
        return [*normed, stream, rstd, grad_x, *grad_weights]

    for plan in ({"threads": 128, "block_rows": 5}, {"threads": 32, "block_rows": 64}):
        monkeypatch.setattr(emulated, "NORM_PLAN", plan)
        emulated.MODULE.seed(100)
        first = run()
        emulated.MODULE.seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))
