"""The Triton kernels in the interpreter as ops: tiles, places of 64 bits, guard bands, autograd, opcheck, arguments."""

import pytest
import torch
from step_scores import (
    BF16,
    DTYPES,
    EACH_KIND,
    F16,
    FEW,
    LENGTHS,
    MASKED,
    OPS,
    assert_right,
    backward,
    forward,
    make,
    small_blocks,
    tensors,
)

from ladderkern.testing import floats, guarded, poisoned_allocations

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf


def test_tiles_follow_the_responses():
    from ladderkern.prm import kernels

    sizes = [(0, 0), (6144, 512), (25_697, 3400), (10**7, 833_000), (10**5, 1)]
    assert [tuple(kernels._blocks(*size).values())[:2] for size in sizes] == [(64, 2), (8, 16), (16, 8), (64, 2), (1, 512)]


def test_steps_further_apart_than_32_bits():
    case = make((2, 1), dtype=F16)
    case.scores = torch.empty(2**31 + 200, dtype=F16).as_strided((3, 2), (2**30 + 50, 1)).copy_(case.scores)
    assert_right(case)


@EACH_KIND
@MASKED
def test_places_of_64_bits(masked, kind, monkeypatch):
    from ladderkern.prm import kernels

    monkeypatch.setattr(kernels, "_LONG", 0)
    assert_right(make((9, 0, 3, 2), kind=kind, masked=masked))


@FEW
@DTYPES
def test_expanded_and_strided_gradients(dtype, kind):
    case = make(dtype=dtype, kind=kind)
    S, R = len(case.scores), len(LENGTHS)
    case.grads = [torch.tensor(0.7, dtype=case.wide).expand(3, S), torch.tensor(-2.0, dtype=case.wide).expand(11, R)]
    assert_right(case)
    case.grads = [floats((S, 6), case.wide, seed=11).T[::2], floats((R, 11), case.wide, seed=12).T]
    assert_right(case)


@pytest.mark.parametrize("offsets", [[3, 8, 10], [0, 4, 40], [-7, 4, 10], [8, 2, 12], [2**40, -(2**40), 5], [4]], ids=str)
def test_offsets_that_are_no_offsets_never_lead_outside(offsets, blocks):
    case = make((12,), kind="five classes")
    guard = guarded(case.scores)
    case.scores, case.offsets = guard.tensor, torch.tensor(offsets)
    case.grads[1] = floats((11, len(offsets) - 1), seed=5)
    with poisoned_allocations():
        outputs = forward(case)
        gradient = backward(case, outputs)
    clamped = [min(max(offset, 0), 12) for offset in offsets]
    outside = [i for i in range(12) if i < clamped[0] or i >= clamped[-1]]
    if clamped == sorted(clamped):
        assert outputs[0][:, outside].isnan().all()
        assert gradient[outside].eq(0).all()
        inside = [i for i in range(12) if i not in outside]
        assert outputs[0][:, inside].isfinite().all()
    assert gradient.isfinite().all()
    guard.assert_untouched("scores")


@FEW
@DTYPES
def test_nothing_is_written_beside_the_outputs(dtype, kind, monkeypatch):
    from ladderkern.prm import kernels

    small_blocks(monkeypatch)
    made = []

    class Guarding:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, dtype, **options):
            if dtype == torch.bool:
                return torch.empty(shape, dtype=dtype, **options)
            made.append(guarded(torch.zeros(shape, dtype=dtype, **options)))
            return made[-1].tensor

    monkeypatch.setattr(kernels, "torch", Guarding())
    case = make(dtype=dtype, kind=kind)
    backward(case, forward(case))
    assert len(made) == 4
    for i, guard in enumerate(made):
        guard.assert_untouched(f"output {i}")


@EACH_KIND
def test_autograd_twice_from_one_graph(kind):
    case = make(dtype=BF16, kind=kind, masked=True)
    scores = case.scores.nan_to_num(0.5).requires_grad_()
    outputs = OPS.prm_scores.triton(scores, *tensors(case)[1:], **case.options)
    assert [output.requires_grad for output in outputs] == [True, True, False, False]
    for seed in (20, 21):
        case.grads = [floats((3, len(scores)), seed=seed), floats((11, len(LENGTHS)), seed=seed + 5)]
        (gradient,) = torch.autograd.grad(outputs[:2], scores, case.grads, retain_graph=True)
        assert torch.equal(gradient, backward(case, [output.detach() for output in outputs]))


@FEW
@MASKED
def test_opcheck(masked, kind):
    case = make((4, 3), BF16, kind)
    if masked:
        case.mask = torch.ones(7, dtype=torch.bool)  # opcheck takes no NaN for another
    outputs = forward(case)
    torch.library.opcheck(OPS.prm_scores.triton, (case.scores.clone().requires_grad_(), *tensors(case)[1:]), case.options)
    torch.library.opcheck(OPS.prm_scores_backward.triton, (*case.grads, *tensors(case), *outputs[:3]), case.options)


def test_bad_arguments_are_refused_by_name():
    case = make()
    with pytest.raises(TypeError, match="offsets"):
        OPS.prm_scores.triton(case.scores, case.offsets.int(), None, None, **case.options)
    with pytest.raises(ValueError, match="positive"):
        OPS.prm_scores.triton(*tensors(case), **{**case.options, "positive": 2})
    outputs = forward(case)
    with pytest.raises(ValueError, match="grad_steps"):
        OPS.prm_scores_backward.triton(case.grads[0][:2], case.grads[1], *tensors(case), *outputs[:3], **case.options)
