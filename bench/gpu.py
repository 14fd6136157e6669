"""Speed on a GPU: ``python bench/gpu.py [--csv PATH] [--plot PATH]``: ratios of medians, and shares of a copy's bandwidth.

Peers are timed in turn, several rounds, each by triton.testing.do_bench, which flushes the cache. A ratio is the median over
the rounds. The limit is the least traffic (ladderkern.testing.work) at the bandwidth of a large device-to-device copy. Peers:
torch's fused AdamW, eager PyTorch, torch.compile, and Liger where it is installed.

``TRITON_INTERPRET=1 python bench/gpu.py --rehearse`` makes every call once, small and on the CPU: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.testing
from gpu_plot import plot
from harness import Row, Spread, table, write_csv

import ladderkern
from ladderkern.runtime.library import CUDA

BACKENDS = ("triton", "cuda") if CUDA.loaded else ("triton",)
REHEARSAL = ladderkern.runtime.backend.interpreting()
DEVICE, ROUNDS = ("cpu", 2) if REHEARSAL else ("cuda", 7)
LIGER = importlib.util.find_spec("liger_kernel") is not None and not REHEARSAL  # its kernels do not run in the interpreter


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under torch.compile; in a rehearsal traced alone."""
    return torch.compile(function, dynamic=False, backend="eager" if REHEARSAL else "inductor")


def sized(full: int, small: int) -> int:
    """A size, or the one of a rehearsal."""
    return small if REHEARSAL else full


def once(call: Callable[[], Any], **options: Any) -> float:
    """Milliseconds of a call."""
    if not REHEARSAL:
        return float(triton.testing.do_bench(call, return_mode="median", **options))
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def milliseconds(peers: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Times of each peer, a sample a round, in an order that rotates."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for name in itertools.chain(*([*list(peers)[i % len(peers) :], *list(peers)[: i % len(peers)]] for i in range(ROUNDS))):
        times[name].append(once(peers[name], warmup=5, rep=30))
    return times


def copy_bandwidth() -> float:
    """Bytes a millisecond that a large copy reads and writes."""
    source, target = torch.empty(2, sized(1 << 30, 1 << 20), dtype=torch.uint8, device=DEVICE)
    return 2 * source.numel() / once(lambda: target.copy_(source), rep=200)


def compare(title: str, ours: dict[str, Callable], peers: dict[str, Callable], least: float, limit: float) -> Iterator[Row]:
    """A line for each of ours against each peer, with our share of the limit."""
    times = milliseconds({**ours, **peers})
    for name in ours:
        share = least / limit / statistics.median(times[name])
        for peer in peers:
            ratio = Spread.of([a / b for a, b in zip(times[peer], times[name], strict=True)])
            yield Row(title, f"{peer} / {name}", ratio, share=share)


def by_backend(call: Callable[[], Any], backends: tuple[str, ...] = BACKENDS) -> dict[str, Callable[[], Any]]:
    """The call on each backend."""

    def on(name: str) -> Callable[[], Any]:
        def run() -> Any:
            with ladderkern.backend(name):
                return call()

        return run

    return {name: on(name) for name in backends}


def spam(limit: float) -> Iterator[Row]:
    """Optimizer steps against torch's fused AdamW."""

    def make(shapes: list[tuple[int, ...]], dtype: torch.dtype, build: Callable[[Any], Any]) -> Callable[[], Any]:
        params = [torch.nn.Parameter(torch.randn(shape, device=DEVICE, dtype=dtype)) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        return build(params).step

    cases = {
        "dense": ({}, 28, 22),
        "element, 1/4": ({"density": 0.25}, 16, 10),
        "row, 1/4": ({"density": 0.25, "mask_unit": "row"}, 7, 5.5),
    }
    n = sized(4096, 16)
    sizes = {f"{16 * n * n / 1e6:.3g} M": [(n, n)] * 16, "200 x 64x64": [(64, 64)] * sized(200, 1)}
    for (size, shapes), (name, (options, wide, narrow)) in itertools.product(sizes.items(), cases.items()):
        for dtype, least in ((torch.float32, wide), (torch.bfloat16, narrow)):
            numel = sum(torch.Size(shape).numel() for shape in shapes)
            ours = {}
            for backend in BACKENDS:
                step = make(shapes, dtype, lambda p, o=options: ladderkern.SPAM(p, capturable=True, **o))
                ours |= {backend: by_backend(step, (backend,))[backend]}
            peers = {"AdamW fused": make(shapes, dtype, lambda p: torch.optim.AdamW(p, fused=True))}
            yield from compare(f"SPAM {size} {str(dtype)[6:]} {name}", ours, peers, numel * least, limit)
            del ours, peers
            if not REHEARSAL:
                torch.cuda.empty_cache()


def norms(limit: float) -> Iterator[Row]:
    """add_rms_norm, forward and backward, against eager PyTorch and its torch.compile."""

    def eager(x: Any, update: Any, weight: Any) -> Any:
        stream = x + update
        wide = stream.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype), stream

    def step(norm: Callable, inputs: list, grads: list) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(norm(*inputs), inputs, grads)

    for hidden, dtype in itertools.product((1024, sized(4096, 96), sized(8192, 40)), (torch.float32, torch.bfloat16)):
        shape = (sized(8192, 2), hidden)
        inputs = [torch.randn(s, device=DEVICE, dtype=dtype, requires_grad=True) for s in (shape, shape, (hidden,))]
        grads = [torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(2)]
        peers = {"eager": step(eager, inputs, grads), "compiled": step(compiled(eager), inputs, grads)}
        if LIGER:
            from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

            def liger(x: Any, update: Any, weight: Any, apply: Callable = LigerFusedAddRMSNormFunction.apply) -> Any:
                return apply(x, update, weight, 1e-6, 0.0, "llama", False)

            peers["Liger"] = step(liger, inputs, grads)
        least = 8 * inputs[0].numel() * inputs[0].element_size()
        ours = by_backend(step(ladderkern.add_rms_norm, inputs, grads))
        yield from compare(f"add_rms_norm {list(shape)} {str(dtype)[6:]}", ours, peers, least, limit)


def losses(limit: float) -> Iterator[Row]:
    """The discrepancy alone and with cross-entropy, forward and backward, against eager PyTorch and its torch.compile."""
    rows, codes = sized(4096, 4), sized(8192, 64)
    distances = ladderkern.DistanceTable(torch.randn(codes, 64, device=DEVICE))
    for columns, dtype in itertools.product((codes, 8 * codes), (torch.float32, torch.bfloat16)):
        logits = torch.randn(rows, columns, device=DEVICE, dtype=dtype, requires_grad=True)
        start = 0 if columns == codes else 4
        labels = torch.randint(start, start + codes, (rows,), device=DEVICE)

        def eager(x: Any, start: int = start, labels: Any = labels) -> Any:
            p = torch.softmax(x[:, start : start + codes].float(), 1)
            return (p * (distances.data[labels - start].float() * distances.scale + distances.offset)).sum(1).mean()

        def joint(x: Any, labels: Any = labels, alone: Callable = eager) -> Any:
            return F.cross_entropy(x.float(), labels) + alone(x)

        def step(loss: Callable, x: Any = logits) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(loss(x), x)

        def ours(loss: Callable, start: int = start, labels: Any = labels) -> Callable:
            return lambda x: loss(x, labels, distances, image_start=start)

        size = logits.element_size()
        where = f"[{rows}, {columns}] {str(dtype)[6:]}"
        peers = {"eager": step(eager), "compiled": step(compiled(eager))}
        least = rows * (codes * (2 * size + 4) + columns * size)
        yield from compare(
            f"discrepancy {where}", by_backend(step(ours(ladderkern.token_discrepancy_loss)), ("triton",)), peers, least, limit
        )
        if columns > codes:
            peers = {"eager": step(joint), "compiled": step(compiled(joint))}
            if LIGER:
                from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

                def liger(x: Any, labels: Any = labels, apply: Callable = LigerCrossEntropyFunction.apply) -> Any:
                    return apply(x, labels, None)[0]

                # Cross-entropy alone, of a tensor of its own: Liger writes its gradient over the logits.
                peers["Liger, half of it"] = step(liger, logits.detach().clone().requires_grad_())
            least = rows * (3 * columns * size + 4 * codes)
            call = step(ours(ladderkern.cross_entropy_with_discrepancy))
            yield from compare(f"joint {where}", by_backend(call, ("triton",)), peers, least, limit)


def steps(limit: float) -> Iterator[Row]:
    """prm_scores against a vectorised eager form of a third of its results, and its torch.compile."""
    for responses, length in ((sized(3400, 6), 8), (sized(100_000, 9), 12)):
        logits = torch.randn(responses * length, 2, device=DEVICE, dtype=torch.bfloat16)
        offsets = torch.arange(responses + 1, device=DEVICE) * length
        owner = torch.repeat_interleave(torch.arange(responses, device=DEVICE), length)

        def eager(x: Any = logits, owner: Any = owner, responses: int = responses) -> Any:
            margin = x[:, 1].float() - x[:, 0].float()
            prob, log_prob = margin.sigmoid(), F.logsigmoid(margin)
            empty = margin.new_zeros(responses)
            least = empty.scatter_reduce(0, owner, margin, "amin", include_self=False)
            return margin, prob, log_prob, least, empty.index_add(0, owner, log_prob), empty.index_add(0, owner, prob)

        ours = by_backend(lambda x=logits, o=offsets: ladderkern.prm.score_steps(x, o))
        peers = {"eager, a third": eager, "compiled, a third": compiled(eager)}
        least = logits.numel() * 2 + logits.shape[0] * 12 + responses * 85
        yield from compare(f"score_steps {responses} x {length}", ours, peers, least, limit)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path, help="shares of the copy's bandwidth as a picture; needs matplotlib")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in the interpreter: TRITON_INTERPRET=1")
    arguments = parser.parse_args()
    if arguments.rehearse != REHEARSAL:
        parser.error("--rehearse and TRITON_INTERPRET=1 go together")
    if not REHEARSAL and not torch.cuda.is_available():
        print("bench/gpu.py: no GPU is visible: nothing to time here")
        return
    limit, rows = copy_bandwidth(), []
    name = "rehearsal, numbers mean nothing" if REHEARSAL else torch.cuda.get_device_name()
    where = {"device": name, "copy_GB_per_s": round(limit / 1e6), "torch version": torch.__version__}
    where |= {"triton version": triton.__version__, "cuda library": CUDA.loaded, "ladderkern version": ladderkern.__version__}
    where |= {"liger": LIGER}
    for part in (spam, norms, losses, steps):
        rows += part(limit)
        if arguments.csv:
            write_csv(arguments.csv, rows, where)
        if arguments.plot:
            plot(arguments.plot, rows, f"{name}; a copy moves {limit / 1e6:.0f} GB/s")
        print(f"{part.__name__} done", flush=True)
    print(*table(rows), f"{name}; a copy moves {limit / 1e6:.0f} GB/s", sep="\n")


if __name__ == "__main__":
    main()
