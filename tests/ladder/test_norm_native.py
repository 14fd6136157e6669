"""The native norms: every size, layout and dtype against float64; transformers' bits; the same bits however they are run."""

import pytest
import torch

from ladderkern.ladder import ops
from ladderkern.testing import fingerprint_of, floats, guarded, poisoned_allocations

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)
OPTIONS = {"eps": 1e-5, "round_sum": True}
LARGE = (1031, 4096)  # past 16 MB in float32: stores go past the caches; rows are no multiple of a block

pytestmark = pytest.mark.usefixtures("native")


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


@DTYPES
@pytest.mark.parametrize("hidden", [1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 255, 256, 257, 1000, 4096, 4099])
def test_every_hidden_size_is_within_budget(plain, dtype, hidden):
    if hidden == 1 and dtype == torch.float64:
        pytest.skip("the gradient of a lone number is what rounding leaves of a difference: float64 cannot judge float64")
    for rows, updates, weights in ((1, 1, 1), (5, 2, 2)):
        with poisoned_allocations():
            plain.check(plain.make_case((rows, hidden), dtype, updates=updates, weights=weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [65536, 70000])
def test_long_rows_are_within_budget(plain, convention, dtype, hidden):
    plain.check(plain.make_case((3, hidden), dtype), convention=convention)


@pytest.mark.parametrize("rows", [15, 16, 17, 33, 1024, 1025, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_number_of_rows_is_within_budget(plain, dtype, rows):
    plain.check(plain.make_case((rows, 40), dtype, weights=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_larger_than_the_caches_are_within_budget(plain, dtype):
    rows, hidden = LARGE
    with poisoned_allocations():
        plain.check(plain.make_case((rows * 2 if dtype == torch.bfloat16 else rows, hidden), dtype))


@DTYPES
@pytest.mark.parametrize("gap", [0, 3, 16])
def test_rows_may_lie_apart(plain, dtype, gap):
    """Also in tensors larger than the caches, whose rows must then be whole vectors to be stored past them."""
    for rows, hidden in ((9, 48), (9, 45)):
        x, update = (floats((rows, hidden + gap), dtype, offset=1, seed=seed)[:, :hidden] for seed in (1, 2))
        weight = floats((hidden,), dtype, seed=3)
        spread = ops.ADD_RMS_NORM.default(x, update, None, weight, None, **OPTIONS)
        packed = ops.ADD_RMS_NORM.default(x.contiguous(), update.contiguous(), None, weight, None, **OPTIONS)
        for a, b in zip(spread, packed, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("weight_dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
@pytest.mark.parametrize("hidden", [768, 1024])
def test_sums_that_are_exact_give_the_bits_of_transformers(dtype, weight_dtype, hidden):
    """Multiples of 1/8 up to 4: each sum of squares is exact in any order, and nothing else may differ."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="the tests of transformers' models need it")
    generator = torch.Generator().manual_seed(0)
    x, update = (torch.randint(-16, 17, (50, hidden), generator=generator).div(8).to(dtype) for _ in range(2))
    norm = llama.LlamaRMSNorm(hidden, eps=1e-5).to(weight_dtype)
    norm.weight.data.copy_(floats((hidden,), seed=9))
    normed, _, stream, _ = ops.ADD_RMS_NORM.default(x, update, None, norm.weight, None, **OPTIONS)
    assert torch.equal(stream, x + update)
    assert torch.equal(normed, norm(x + update))


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=str)
def test_all_but_rstd_has_the_bits_of_transformers(plain, dtype):
    """Of any rows: rstd is within budget, and what is computed with it has no other rounding than transformers'."""
    x, update, update2 = (floats((60, 999), dtype, seed=seed) for seed in range(3))
    weight = floats((999,), dtype, seed=5)
    normed, _, stream, rstd = ops.ADD_RMS_NORM.default(x, update, update2, weight, None, **OPTIONS)
    assert torch.equal(stream, x + update + update2)
    assert torch.equal(normed, weight * (stream.float() * rstd[:, None]).to(dtype))
    alone, rstd = ops.RMS_NORM.default(x, weight, **OPTIONS)
    assert torch.equal(alone, weight * (x.float() * rstd[:, None]).to(dtype))


@DTYPES
def test_odd_values_stay_in_their_rows(dtype):
    x = floats((8, 50), dtype)
    x[1, 3], x[3, 7], x[5, 49] = float("nan"), float("inf"), -float("inf")
    x[6] = 0.0
    weight = torch.ones(50, dtype=dtype)
    for op in (ops.ADD_RMS_NORM.default, ops.ADD_RMS_NORM.reference):
        normed, _, stream, _ = op(x, x, None, weight, None, **OPTIONS)
        assert normed[1].isnan().all()
        assert torch.equal(normed[[3, 5]].isnan(), x[[3, 5]].isinf())
        assert not normed[[3, 5]][x[[3, 5]].isfinite()].any()
        assert not normed[6].any()
        assert normed[[0, 2, 4, 7]].isfinite().all()
        assert torch.equal(stream.isnan(), x.isnan())


def test_nothing_outside_long_rows_is_read(plain):
    """What is asked for ahead of time is not read: the last row may end where the memory does."""
    case = plain.make_case((3, 2000))
    guards = {name: guarded(t) for name, t in case.inputs.items()}
    for a, b in zip(
        plain.fused(**{n: g.tensor for n, g in guards.items()}).values(), plain.fused(**case.inputs).values(), strict=True
    ):
        assert torch.equal(a, b)
    for name, guard in guards.items():
        guard.assert_untouched(name)


def everything(dtype, weight_dtype, hidden, rows=70, keep=slice(None), round_sum=True):
    """What the four ops return for some rows of one input; weight gradients last."""
    options = {**OPTIONS, "round_sum": round_sum}
    x, update, update2 = (floats((rows, hidden), dtype, seed=seed)[keep] for seed in range(3))
    weight, weight2 = (floats((hidden,), weight_dtype, seed=seed) for seed in (3, 4))
    outputs = ops.ADD_RMS_NORM.default(x, update, update2, weight, weight2, **options)
    normed, _, stream, rstd = outputs
    grads = [floats((rows, hidden), normed.dtype, seed=seed)[keep] for seed in (5, 6)]
    grad_stream = floats((rows, hidden), dtype, seed=7)[keep]
    back = ops.ADD_RMS_NORM_BACKWARD.default(*grads, grad_stream, stream, weight, weight2, rstd)
    alone, rstd = ops.RMS_NORM.default(x, weight, **options)
    alone_back = ops.RMS_NORM_BACKWARD.default(grads[0], x, weight, rstd)
    return [*outputs, alone, back[0], alone_back[0], *back[1:], alone_back[1]]


def cases():
    for dtype in FLOATS:
        for weight_dtype in FLOATS:
            if weight_dtype != torch.float64 or dtype == torch.float64:
                for hidden, round_sum in ((333, True), (800, False)):
                    yield {"dtype": dtype, "weight_dtype": weight_dtype, "hidden": hidden, "round_sum": round_sum}


def fingerprint():
    """SHA-256 of all that the ops return over dtypes, sizes and conventions."""
    large = {"dtype": torch.float32, "weight_dtype": torch.float32, "rows": LARGE[0], "hidden": LARGE[1]}
    return fingerprint_of(t for case in [*cases(), large] for t in everything(**case))


def test_results_do_not_depend_on_the_number_of_threads(assert_same_for_threads):
    assert_same_for_threads(fingerprint, 1, 2, 3)


def test_every_cpu_tier_gives_the_same_bits(tier, fingerprint_of_tier):
    in_use, found = fingerprint_of_tier(tier)
    assert in_use == tier
    assert found == fingerprint_of_tier(None)[1]


def test_a_row_does_not_depend_on_the_others():
    for case in cases():
        together = everything(**case)[:-3]
        for row in (0, 33, 69):
            for part, whole in zip(everything(**case, keep=slice(row, row + 1))[:-3], together, strict=True):
                assert torch.equal(bits(part), bits(whole[row : row + 1]))
