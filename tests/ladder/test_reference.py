"""The law itself: against transformers bit by bit, against float64, and its backward against autograd."""

import pytest
import torch

from ladderkern.ladder import reference
from ladderkern.testing import floats

SIXTEEN = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("weight_dtype", SIXTEEN, ids=str)
@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_the_rounded_convention_is_transformers_bit_by_bit(dtype, weight_dtype):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="the tests of transformers' models need it")
    norm = llama.LlamaRMSNorm(1000, eps=1e-5).to(weight_dtype)
    norm.weight.data.copy_(floats((1000,), seed=9))
    x, update, update2 = (floats((40, 1000), dtype, seed=seed) for seed in range(3))
    for addends in ((None, None), (update, None), (update, update2)):
        stream = x
        for addend in addends:
            stream = stream if addend is None else stream + addend
        normed, _, kept, _ = reference.add_rms_norm(x, *addends, norm.weight, None, eps=1e-5, round_sum=True)
        assert torch.equal(kept, stream)
        assert normed.dtype == norm(stream).dtype
        assert torch.equal(normed, norm(stream))
    assert torch.equal(reference.rms_norm(x, norm.weight, eps=1e-5, round_sum=True)[0], norm(x))


@pytest.mark.parametrize("dtype", SIXTEEN, ids=str)
def test_the_float32_convention_rounds_results_alone(dtype):
    x, update = (floats((9, 300), dtype, seed=seed) for seed in (1, 2))
    weight = floats((300,), dtype, seed=3)
    s = x.float() + update.float()
    expected = s * torch.rsqrt(s.square().mean(1, keepdim=True) + 1e-5) * weight.float()
    normed, _, stream, _ = reference.add_rms_norm(x, update, None, weight, None, eps=1e-5, round_sum=False)
    assert torch.equal(normed, expected.to(dtype))
    assert torch.equal(stream, s.to(dtype))


@pytest.mark.parametrize("weights", [1, 2])
@pytest.mark.parametrize("updates", [0, 1, 2])
def test_the_written_backward_is_the_derivative_of_the_forward(plain, updates, weights):
    case = plain.make_case((6, 17), torch.float64, updates=updates, weights=weights)
    leaves = case.leaves()
    inputs = [leaves.get(name) for name in ("x", "update", "update2", "weight", "weight2")]
    normed, normed2, stream, rstd = reference.add_rms_norm(*inputs, eps=plain.eps, round_sum=True)
    outputs = [(normed, case.grads["normed"]), (normed2, case.grads.get("normed2")), (stream, case.grads["stream"])]
    present = [(t, g) for t, g in outputs if t is not None and t.requires_grad]
    torch.autograd.backward([t for t, _ in present], [g for _, g in present])
    second = case.grads.get("normed2", case.grads["normed"])
    written = reference.add_rms_norm_backward(
        case.grads["normed"], second, case.grads["stream"], stream, leaves["weight"], leaves.get("weight2"), rstd
    )
    expected = [leaves["x"].grad, leaves["weight"].grad, leaves["weight2"].grad if weights == 2 else None]
    for a, b in zip(written, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
