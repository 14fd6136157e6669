"""The CUDA kernel of the step scores on the CPU, by the tests of the Triton kernels; the backward is the reference's."""

from functools import partial
from types import SimpleNamespace

import emulated
import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of inf - inf in the oracle
ops = torch.ops.ladderkern
scores = emulated.triton_tests("prm")
OPS = SimpleNamespace(
    prm_scores=emulated.Overloads(ops.prm_scores, emulated.prm_scores),
    prm_scores_backward=emulated.Overloads(ops.prm_scores_backward, ops.prm_scores_backward.reference),
)
for name in ("forward", "backward", "assert_right"):
    setattr(scores, name, partial(getattr(scores, name), ops=OPS))
scores.small_blocks = lambda monkeypatch: monkeypatch.setattr(emulated, "PRM_WHOLE_BLOCKS", 1)
globals().update(emulated.tests_of(scores))


@pytest.fixture(params=["as launched", "a warp a response", "a block a response"])
def blocks(request, monkeypatch):
    """Long responses get a block each, whose warps share the steps."""
    choice = {"as launched": -1, "a warp a response": 0, "a block a response": 1}
    monkeypatch.setattr(emulated, "PRM_WHOLE_BLOCKS", choice[request.param])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("lengths", [(1500,), (700, 0, 33), (257, 256, 255, 31)], ids=str)
def test_a_response_that_warps_share(lengths, masked, monkeypatch):
    scores.small_blocks(monkeypatch)
    scores.assert_right(scores.make(lengths, torch.float32, "pair", masked))


@pytest.mark.parametrize("offsets", [[3, 8, 10], [0, 4, 40], [-7, 4, 10], [8, 2, 12], [2**40, -(2**40), 5], [4]], ids=str)
def test_offsets_that_are_no_offsets_never_lead_outside(offsets, blocks):
    case = scores.make((12,), kind="five classes")
    case.offsets = torch.tensor(offsets)
    with scores.poisoned_allocations():
        steps = scores.forward(case)[0]
    clamped = [min(max(offset, 0), 12) for offset in offsets]
    if clamped == sorted(clamped):
        assert steps[:, : clamped[0]].isnan().all()
        assert steps[:, clamped[-1] :].isnan().all()
        assert steps[:, clamped[0] : clamped[-1]].isfinite().all()


@pytest.mark.parametrize("seed", range(4))
def test_every_order_of_threads_gives_the_same_bits(seed, monkeypatch):
    case = scores.make((300, 40, 5), torch.bfloat16, "pair", masked=True)
    for whole in (0, 1):
        monkeypatch.setattr(emulated, "PRM_WHOLE_BLOCKS", whole)
        results = []
        for order in (100, seed):
            emulated.MODULE.seed(order)
            results.append(scores.forward(case))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
