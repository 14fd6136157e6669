"""Rows, updates and weights as a transformer has them, the chain that users write today, and the truth in float64."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import ladderkern
from ladderkern.testing import assert_within_budget, floats

EPS = 1e-5


class Case(SimpleNamespace):
    """Inputs of add_rms_norm in ``inputs``, incoming gradients of its outputs in ``grads``."""

    def leaves(self, dtype=None):
        """Copies of the inputs that require gradients, in another dtype if one is given."""
        return {name: t.detach().to(dtype or t.dtype, copy=True).requires_grad_() for name, t in self.inputs.items()}


def make_case(
    shape=(5, 24), dtype=torch.float32, weight_dtype=None, updates=1, weights=1, scale=1.0, seed=0, grads=None
):  # fmt: skip
    """Normal rows; ``updates`` addends; ``weights`` norms of one stream."""
    weight_dtype = weight_dtype or dtype
    normed = torch.promote_types(dtype, weight_dtype)
    names = ["x", "update", "update2"][: updates + 1]
    inputs = {name: floats(shape, torch.float64, seed=seed + i).mul_(scale).to(dtype) for i, name in enumerate(names)}
    for i, name in enumerate(["weight", "weight2"][:weights]):
        inputs[name] = floats(shape[-1:], torch.float64, seed=seed + 5 + i).add_(1).to(weight_dtype)
    outputs = ["normed", "normed2", "stream"] if weights == 2 else ["normed", "stream"]
    grads = grads or {
        name: floats(shape, dtype if name == "stream" else normed, seed=seed + 8 + i) for i, name in enumerate(outputs)
    }
    return Case(inputs=inputs, grads=grads)


def llama_norm(stream, weight, eps=EPS):
    """transformers' LlamaRMSNorm, in float64 for float64 rows."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(stream.dtype)


def eager(x, update=None, update2=None, *, weight, weight2=None):
    """What users write: additions, then norms."""
    stream = x
    for addend in (update, update2):
        stream = stream if addend is None else stream + addend
    norms = {"normed": llama_norm(stream, weight)}
    if weight2 is not None:
        norms["normed2"] = llama_norm(stream, weight2)
    return {**norms, "stream": stream}


def exact(x, update=None, update2=None, *, weight, weight2=None):
    """The same in float64, by torch's own norm."""
    stream = sum((t for t in (update, update2) if t is not None), x)
    norms = {"normed": F.rms_norm(stream, stream.shape[-1:], weight, EPS)}
    if weight2 is not None:
        norms["normed2"] = F.rms_norm(stream, stream.shape[-1:], weight2, EPS)
    return {**norms, "stream": stream}


def fused(x, update=None, update2=None, *, weight, weight2=None, convention="rounded"):
    """The same by the public function."""
    options = {"update2": update2, "weight2": weight2, "convention": convention}
    *norms, stream = ladderkern.add_rms_norm(x, update, weight, EPS, **options)
    return dict(zip(("normed", "normed2"), norms, strict=False)) | {"stream": stream}


def results(function, leaves, grads, **options):
    """Outputs, and the gradients of all inputs."""
    outputs = function(**leaves, **options)
    given = [grads[name].to(t.dtype) if t.dtype == torch.float64 else grads[name] for name, t in outputs.items()]
    torch.autograd.backward(list(outputs.values()), given)
    gradients = {f"gradient of {name}": t.grad for name, t in leaves.items()}
    return {name: t.detach() for name, t in outputs.items()} | gradients


def check(case, **options):
    """All that the public function gives, against the truth, by the budget of the eager chain; returns it."""
    actual = results(fused, case.leaves(), case.grads, **options)
    plain = results(eager, case.leaves(), case.grads)
    truth = results(exact, case.leaves(torch.float64), case.grads)
    for name, value in actual.items():
        assert_within_budget(value, plain[name], truth[name], name)
    return actual


@pytest.fixture
def plain():
    """The helpers above."""
    return SimpleNamespace(
        make_case=make_case, llama_norm=llama_norm, eager=eager, exact=exact, fused=fused, results=results, check=check, eps=EPS
    )


@pytest.fixture(params=["rounded", "float32"])
def convention(request):
    return request.param
