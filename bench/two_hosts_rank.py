"""One of two hosts: runs standard, ladder, hybrid and parallel models of the same weights when it is told to.

two_hosts_rank.py RANK PARENT        # two_hosts_link.TwoHosts starts it
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ladder_overlap import Sleep
from torch import Tensor, nn
from two_hosts_link import ADDRESSES, HOSTS, die_with

from ladderkern.ladder import DelayedCommunicator, LadderStack, ProcessGroupCommunicator, column_linear, timeline

PORT = 29517
WAYS = ("standard", "ladder", "hybrid", "parallel", "none")  # none: no communication


class Workload(NamedTuple):
    """A step of a model, whose weights each rank holds half of."""

    layers: int
    hidden: int
    tokens: int
    context: int  # tokens in the cache, before these
    training: bool
    sleep: float  # seconds a branch sleeps each way, where it sleeps


# Modules of 10 ms or more: a sum of gloo's costs about a millisecond of the core that computes. Hidden sizes are large, since
# compute grows with their square, and what a sum costs only with them.
WORKLOADS = {
    "decode": Workload(layers=6, hidden=3072, tokens=4, context=256, training=False, sleep=0.01),
    "prefill": Workload(layers=6, hidden=2048, tokens=48, context=0, training=False, sleep=0.015),
    "training": Workload(layers=6, hidden=2048, tokens=48, context=0, training=True, sleep=0.015),
}


class Branch(nn.Module):
    """What all branches have: a norm's weight, and this rank's part of some matrices."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm_weight, self.eps = nn.Parameter(torch.ones(hidden)), 1e-6

    def matrix(self, rows: int, columns: int) -> nn.Parameter:
        """Random and scaled so that streams stay of one size.  [rows, columns]"""
        return nn.Parameter(torch.randn(rows, columns) * 0.2 / columns**0.5)


class Attention(Branch):
    """Half of the heads of a causal attention behind a cache."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(hidden := workload.hidden)
        self.width = hidden // HOSTS
        self.heads = self.width // 64
        self.qkv, self.out = self.matrix(3 * self.width, hidden), self.matrix(hidden, self.width)
        self.cache = torch.randn(2, self.heads, workload.context, 64)

    def forward(self, normed: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]"""
        q, k, v = column_linear(normed, self.qkv).view(-1, 3, self.heads, 64).permute(1, 2, 0, 3)
        if self.cache.shape[2]:  # the new tokens see all of the cache and, in decoding, each other
            k, v = torch.cat((self.cache[0], k), 1), torch.cat((self.cache[1], v), 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=not self.cache.shape[2])
        return F.linear(y.transpose(0, 1).reshape(-1, self.width), self.out)


class MLP(Branch):
    """Half of the features of a SwiGLU of twice the hidden size."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(hidden := workload.hidden)
        width = 2 * hidden // HOSTS
        self.gate_up, self.down = self.matrix(2 * width, hidden), self.matrix(hidden, width)

    def forward(self, normed: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]"""
        gate, up = column_linear(normed, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class Sleeping(Branch):
    """Takes its time, and no core."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload.hidden)
        self.seconds = workload.sleep

    def forward(self, normed: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]"""
        return Sleep.apply(normed, self.seconds)


class Parallel(Branch):
    """Attention and MLP of a layer side by side, of one norm and with one sum."""

    def __init__(self, attention: Branch, mlp: Branch) -> None:
        super().__init__(attention.norm_weight.shape[0])
        self.parts = nn.ModuleList([attention, mlp])

    def forward(self, normed: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]"""
        attention, mlp = self.parts
        return attention(normed) + mlp(normed)


def stacks(workload: Workload, compute: str, latency: float) -> dict[str, LadderStack]:
    """The same branches, wired in each way."""
    kinds = (Sleeping, Sleeping) if compute == "sleep" else (Attention, MLP)
    branches = [kind(workload) for _ in range(workload.layers) for kind in kinds]
    link = DelayedCommunicator(ProcessGroupCommunicator(dist.group.WORLD), latency)
    pairs = [Parallel(*branches[i : i + 2]) for i in range(0, len(branches), 2)]
    half = [int(i >= len(branches) // 2) for i in range(len(branches))]
    return {
        "standard": LadderStack(branches, 0, link),
        "ladder": LadderStack(branches, 1, link),
        "hybrid": LadderStack(branches, half, link),
        "parallel": LadderStack(pairs, 0, link),
        "none": LadderStack(branches, 0),
    }


def step(stack: LadderStack, x: Tensor, training: bool) -> Callable[[], Any]:
    """A forward, or a forward and a backward."""
    if not training:
        return torch.no_grad()(lambda: stack(x))

    def train() -> None:
        stack.zero_grad()
        stack(x).square().mean().backward()

    return train


def seconds_of(function: Callable[[], Any]) -> tuple[float, float]:
    """Of the rank that takes longer, and of its core with all threads of the rank; both ranks begin together."""
    dist.barrier()
    start, busy = time.perf_counter(), time.process_time()
    function()
    elapsed = torch.tensor([time.perf_counter() - start, time.process_time() - busy], dtype=torch.float64)
    dist.all_reduce(elapsed, dist.ReduceOp.MAX)
    seconds, core = elapsed.tolist()
    return seconds, core


def measure(workload: Workload, compute: str, latency: float, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step in each way and those of the core, round by round, in an order that rotates."""
    x = torch.randn(workload.tokens, workload.hidden, generator=torch.Generator().manual_seed(0)).requires_grad_()
    steps = {way: step(stack, x, workload.training) for way, stack in stacks(workload, compute, latency).items()}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    busy: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(-1, rounds):
        turn = (i + 1) // 2 % len(WAYS)
        order = WAYS[turn:] + WAYS[:turn]
        for way in order if i % 2 else order[::-1]:
            seconds, core = seconds_of(steps[way])
            if i >= 0:  # the first connects and allocates
                times[way].append(seconds)
                busy[way].append(core)
    return {"seconds": times, "core": busy}


def draw(workload: Workload, compute: str, latency: float, plots: dict[str, str]) -> dict[str, float]:
    """Pictures of a step's lanes, by rank 0; the hidden share of each way."""
    x = torch.randn(workload.tokens, workload.hidden, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wired, hidden = stacks(workload, compute, latency), {}
    for way, path in plots.items():
        seen = timeline(step(wired[way], x, workload.training), group=dist.group.WORLD)
        hidden[way] = seen.hidden_share
        if dist.get_rank() == 0:
            seen.write_plot(path)
    return hidden


def put_communication_first() -> None:
    """Let gloo's threads run as soon as they can, as a network card would: else a sum waits for slices of who computes."""
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != os.getpid():
            os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))


def main() -> None:
    rank, parent = (int(text) for text in sys.argv[1:])
    die_with(parent)
    print("started", flush=True)
    torch.set_num_threads(1)
    for line in sys.stdin:
        task = json.loads(line)
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"tcp://{ADDRESSES[0]}:{PORT}", rank=rank, world_size=HOSTS)
            dist.barrier()
            put_communication_first()
        torch.manual_seed(rank)
        workload = WORKLOADS[task["workload"]]._replace(**task["changes"])
        setting = workload, task["compute"], task["latency"]
        answer = draw(*setting, task["plots"]) if "plots" in task else measure(*setting, task["rounds"])
        if rank == 0:
            print(json.dumps({**answer, "branches": 2 * workload.layers}), flush=True)


if __name__ == "__main__":
    main()
