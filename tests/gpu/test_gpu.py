"""What a GPU alone can show: no synchronisation, CUDA graphs, and the public functions on CUDA tensors as on CPU ones."""

import pytest
import torch

import ladderkern
from ladderkern.ladder import LadderStack
from ladderkern.testing import assert_within_budget, floats
from ladderkern.testing.branches import HIDDEN, branches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    """A backend of CUDA tensors, in force while the test runs."""
    if request.param == "cuda" and not ladderkern.runtime.library.CUDA.loaded:
        pytest.skip(f"the CUDA library {ladderkern.runtime.library.CUDA.reason}")
    return request.param


def losses(device, dtype, wide=None):
    logits = floats((64, 300), dtype).to(device, wide).requires_grad_()
    labels = torch.arange(64, device=device) * 4 % 300
    table = ladderkern.DistanceTable(floats((256, 16), seed=1).to(device))
    loss = ladderkern.cross_entropy_with_discrepancy(logits, labels, table, image_start=4, label_smoothing=0.1)
    alone = ladderkern.token_discrepancy_loss(logits, labels, table, image_start=4)
    return {"joint": loss, "alone": alone, "gradient": torch.autograd.grad(loss + alone, logits)[0]}


def scores(device, dtype, wide=None):
    logits = floats((40, 2), dtype).to(device, wide).requires_grad_()
    offsets = torch.tensor([0, 3, 3, 20, 40], device=device)
    found = ladderkern.prm.score_steps(logits, offsets)
    gradient = torch.autograd.grad((found.log_product + found.min_margin.nan_to_num()).sum(), logits)[0]
    return {"log_product": found.log_product, "first_error": found.first_error, "gradient": gradient}


def norms(device, dtype, wide=None):
    x, update, weight = (
        floats(shape, dtype, seed=i).to(device, wide).requires_grad_() for i, shape in enumerate([(9, 300)] * 2 + [(300,)])
    )
    normed, stream = ladderkern.add_rms_norm(x, update, weight)
    gradients = torch.autograd.grad((normed * stream).sum(), (x, weight))
    return {"normed": normed, "stream": stream, "grad_x": gradients[0], "grad_weight": gradients[1]}


def steps(device, dtype, wide=None, **options):
    params = [
        torch.nn.Parameter(floats(shape, dtype, seed=i).to(device, wide)) for i, shape in enumerate([(32, 64), (7,), (64, 16)])
    ]
    optimizer = ladderkern.SPAM(
        params, lr=1e-2, reset_interval=4, warmup_steps=2, unclipped_steps=1, capturable=device == "cuda", **options
    )
    for step in range(7):
        for i, p in enumerate(params):
            p.grad = floats(p.shape, dtype, seed=10 * step + i + 3).to(device, wide)
        optimizer.step()
    return {f"parameter {i}": p.detach() for i, p in enumerate(params)}


CASES = {
    "losses": (losses, ("triton",)),
    "scores": (scores, ("triton", "cuda")),
    "norms": (norms, ("triton", "cuda")),
    "spam": (steps, ("triton", "cuda")),
    "spam by element": (lambda *a: steps(*a, density=0.25), ("triton", "cuda")),
    "spam by row": (lambda *a: steps(*a, density=0.5, mask_unit="row"), ("triton", "cuda")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_public_functions_give_what_they_give_on_the_cpu(case, dtype, backend):
    run, backends = CASES[case]
    if backend not in backends:
        pytest.skip("Triton alone serves this op")
    with ladderkern.backend("reference"):
        exact, plain = run("cpu", dtype, torch.float64), run("cpu", dtype)
    if case == "scores" and backend == "cuda":
        found = run("cuda", dtype)  # the backward is Triton's: only the automatic choice mixes the two
    else:
        with ladderkern.backend(backend):
            found = run("cuda", dtype)
    for name, value in found.items():
        if value.dtype == torch.int64:
            assert torch.equal(value.cpu(), plain[name])
        else:
            assert_within_budget(value.cpu(), plain[name], exact[name], name)


@pytest.mark.parametrize("case", ["scores", "norms", "spam"])
def test_nothing_waits_for_the_device(case, backend):
    run, _ = CASES[case]
    run("cuda", torch.float32)  # compiled, and tables uploaded
    torch.cuda.synchronize()
    work = {
        "scores": lambda x, o: ladderkern.prm.score_steps(x, o).log_product.sum().backward(),
        "norms": lambda x, o: ladderkern.rms_norm(x, x[0].detach()).sum().backward(),
        "spam": lambda x, o: None,
    }[case]
    x, offsets = torch.randn(40, 2, device="cuda", requires_grad=True), torch.tensor([0, 3, 40], device="cuda")
    p = torch.nn.Parameter(torch.randn(64, 64, device="cuda"))
    p.grad = torch.randn_like(p)
    optimizer = ladderkern.SPAM([p], capturable=True)
    optimizer.step()
    work(x, offsets)
    torch.cuda.set_sync_debug_mode("error")
    try:
        work(x, offsets)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"density": 0.25}, {"density": 0.5, "mask_unit": "row"}], ids=str)
def test_a_step_captured_in_a_cuda_graph(options, backend):
    def make():
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(64, 64, device="cuda"))
        p.grad = torch.randn_like(p)
        return p, ladderkern.SPAM([p], lr=1e-2, reset_interval=4, warmup_steps=2, unclipped_steps=1, capturable=True, **options)

    with ladderkern.backend(backend):
        plain, optimizer = make()
        for _ in range(10):
            optimizer.step()
        p, optimizer = make()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        for _ in range(8):
            graph.replay()
    assert torch.equal(p, plain)
    assert optimizer.state[p]["step"].item() == 10


@pytest.mark.parametrize("delay", [0, 1])
def test_a_decode_step_captured_in_a_cuda_graph(delay, backend):
    """One token of two sequences through a stack, with another token at each replay."""
    stack = LadderStack(branches([0], dtype=torch.float32), delay=delay).cuda()
    tokens = [floats((2, 1, HIDDEN), seed=i, device="cuda") for i in range(4)]
    with ladderkern.backend(backend), torch.no_grad():
        plain = [stack(token) for token in tokens]
        x, stream = tokens[0].clone(), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            stack(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = stack(x)
        for token, expected in zip(tokens, plain, strict=True):
            x.copy_(token)
            graph.replay()
            assert torch.equal(out, expected)
