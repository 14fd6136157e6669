"""Speed on a GPU: ``python bench/gpu.py [--csv PATH]``. Ratios of interleaved medians, and shares of the bandwidth of a copy.

Peers are timed in turn, several rounds, each by triton.testing.do_bench, which flushes the cache. A ratio is the median over
the rounds. The limit is the least traffic (ladderkern.testing.work) at the bandwidth of a large device-to-device copy.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.testing
from harness import Row, Spread, table, write_csv

import ladderkern
from ladderkern.runtime.library import CUDA

ROUNDS = 7
BACKENDS = ("triton", "cuda") if CUDA.loaded else ("triton",)


def milliseconds(peers: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Times of each peer, a sample a round, in an order that rotates."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for name in itertools.chain(*([*list(peers)[i % len(peers) :], *list(peers)[: i % len(peers)]] for i in range(ROUNDS))):
        times[name].append(triton.testing.do_bench(peers[name], warmup=5, rep=30, return_mode="median"))
    return times


def copy_bandwidth() -> float:
    """Bytes a millisecond that a large copy reads and writes."""
    source, target = torch.empty(2, 1 << 30, dtype=torch.uint8, device="cuda")
    return 2 * source.numel() / triton.testing.do_bench(lambda: target.copy_(source), rep=200, return_mode="median")


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
        params = [torch.nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype)) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        return build(params).step

    cases = {
        "dense": ({}, 28, 22),
        "element, 1/4": ({"density": 0.25}, 16, 10),
        "row, 1/4": ({"density": 0.25, "mask_unit": "row"}, 7, 5.5),
    }
    sizes = {"268 M": [(4096, 4096)] * 16, "200 x 64x64": [(64, 64)] * 200}
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
            torch.cuda.empty_cache()


def norms(limit: float) -> Iterator[Row]:
    """add_rms_norm, forward and backward, against eager PyTorch and its torch.compile."""

    def eager(x: Any, update: Any, weight: Any) -> Any:
        stream = x + update
        wide = stream.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype), stream

    def step(norm: Callable, inputs: list, grads: list) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(norm(*inputs), inputs, grads)

    for hidden, dtype in itertools.product((1024, 4096, 8192), (torch.float32, torch.bfloat16)):
        shape = (8192, hidden)
        inputs = [torch.randn(s, device="cuda", dtype=dtype, requires_grad=True) for s in (shape, shape, (hidden,))]
        grads = [torch.randn(shape, device="cuda", dtype=dtype) for _ in range(2)]
        compiled = torch.compile(eager, dynamic=False)
        peers = {"eager": step(eager, inputs, grads), "compiled": step(compiled, inputs, grads)}
        least = 8 * inputs[0].numel() * inputs[0].element_size()
        ours = by_backend(step(ladderkern.add_rms_norm, inputs, grads))
        yield from compare(f"add_rms_norm {list(shape)} {str(dtype)[6:]}", ours, peers, least, limit)


def losses(limit: float) -> Iterator[Row]:
    """The discrepancy alone and with cross-entropy, forward and backward, against eager PyTorch and its torch.compile."""
    rows, codes = 4096, 8192
    distances = ladderkern.DistanceTable(torch.randn(codes, 64, device="cuda"))
    for columns, dtype in itertools.product((codes, 65536), (torch.float32, torch.bfloat16)):
        logits = torch.randn(rows, columns, device="cuda", dtype=dtype, requires_grad=True)
        start = 0 if columns == codes else 4
        labels = torch.randint(start, start + codes, (rows,), device="cuda")

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
        peers = {"eager": step(eager), "compiled": step(torch.compile(eager, dynamic=False))}
        least = rows * (codes * (2 * size + 4) + columns * size)
        yield from compare(
            f"discrepancy {where}", by_backend(step(ours(ladderkern.token_discrepancy_loss)), ("triton",)), peers, least, limit
        )
        if columns > codes:
            peers = {"eager": step(joint), "compiled": step(torch.compile(joint, dynamic=False))}
            least = rows * (3 * columns * size + 4 * codes)
            call = step(ours(ladderkern.cross_entropy_with_discrepancy))
            yield from compare(f"joint {where}", by_backend(call, ("triton",)), peers, least, limit)


def steps(limit: float) -> Iterator[Row]:
    """prm_scores against a vectorised eager form of a third of its results, and its torch.compile."""
    for responses, length in ((3400, 8), (100_000, 12)):
        logits = torch.randn(responses * length, 2, device="cuda", dtype=torch.bfloat16)
        offsets = torch.arange(responses + 1, device="cuda") * length
        owner = torch.repeat_interleave(torch.arange(responses, device="cuda"), length)

        def eager(x: Any = logits, owner: Any = owner, responses: int = responses) -> Any:
            margin = x[:, 1].float() - x[:, 0].float()
            prob, log_prob = margin.sigmoid(), F.logsigmoid(margin)
            empty = margin.new_zeros(responses)
            least = empty.scatter_reduce(0, owner, margin, "amin", include_self=False)
            return margin, prob, log_prob, least, empty.index_add(0, owner, log_prob), empty.index_add(0, owner, prob)

        ours = by_backend(lambda x=logits, o=offsets: ladderkern.prm.score_steps(x, o))
        peers = {"eager, a third": eager, "compiled, a third": torch.compile(eager, dynamic=False)}
        least = logits.numel() * 2 + logits.shape[0] * 12 + responses * 85
        yield from compare(f"score_steps {responses} x {length}", ours, peers, least, limit)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    limit, rows = copy_bandwidth(), []
    name = torch.cuda.get_device_name()
    where = {"device": name, "copy_GB_per_s": round(limit / 1e6), "torch version": torch.__version__}
    where |= {"triton version": triton.__version__, "cuda library": CUDA.loaded, "ladderkern version": ladderkern.__version__}
    for part in (spam, norms, losses, steps):
        rows += part(limit)
        if arguments.csv:
            write_csv(arguments.csv, rows, where)
        print(f"{part.__name__} done", flush=True)
    print(*table(rows), f"{name}; a copy moves {limit / 1e6:.0f} GB/s", sep="\n")


if __name__ == "__main__":
    main()
