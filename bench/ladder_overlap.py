"""How much of its communication a ladder hides, on two gloo ranks: prints JSON, one number a round, way and share.

``python bench/ladder_overlap.py`` starts both. Branches sleep instead of computing, so that the ranks of a small machine
leave each other alone, and sums take a given time at least. hidden = (standard - ladder) / (standard - no communication).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ladderkern.ladder import DelayedCommunicator, LadderStack, ProcessGroupCommunicator

RANKS, HIDDEN = 2, 64
WAYS = ("forward", "backward")


class Sleep(torch.autograd.Function):
    """The identity, which takes its time both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return grad, None


class Branch(nn.Module):
    """A branch with one weight, which computes for some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.norm_weight, self.eps = nn.Parameter(torch.ones(HIDDEN)), 1e-6
        self.weight, self.seconds = nn.Parameter(torch.eye(HIDDEN)), seconds

    def forward(self, normed: Tensor) -> Tensor:
        return Sleep.apply(normed @ self.weight, self.seconds)


def seconds_of(stack: LadderStack) -> dict[str, float]:
    """Of one forward and one backward, both begun together on all ranks."""
    x = torch.ones(4, HIDDEN, requires_grad=True)
    dist.barrier()
    start = time.perf_counter()
    y = stack(x)
    forward = time.perf_counter() - start
    dist.barrier()
    start = time.perf_counter()
    y.sum().backward()
    return {"forward": forward, "backward": time.perf_counter() - start}


def run_rank(options: argparse.Namespace) -> dict[str, list[float]]:
    """The hidden share of each round."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(options.store, RANKS), rank=options.rank, world_size=RANKS)
    branches = [Branch(options.compute) for _ in range(options.modules)]
    slow = DelayedCommunicator(ProcessGroupCommunicator(dist.group.WORLD), options.communication)
    stacks = {
        "standard": LadderStack(branches, 0, slow),
        "ladder": LadderStack(branches, 1, slow),
        "none": LadderStack(branches),
    }
    seconds_of(LadderStack(branches[:1], 1, slow))  # connects the ranks, and loads what a backward loads
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(options.rounds):
        names = sorted(stacks, reverse=i % 2 == 1)
        times = {name: seconds_of(stacks[name]) for name in names}
        for way in WAYS:
            standard, ladder, none = (times[name][way] for name in ("standard", "ladder", "none"))
            shares[way].append((standard - ladder) / (standard - none))
    return shares


def measure(modules: int, compute: float, communication: float, rounds: int) -> dict[str, list[float]]:
    """The hidden share of each round and way, on ranks in processes of their own; times in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"modules": modules, "compute": compute, "communication": communication, "rounds": rounds}
        command = [sys.executable, str(Path(__file__)), "--store", f"{folder}/store"]
        command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(RANKS)]
        try:
            outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    assert not any(rank.returncode for rank in ranks), outputs
    shares: dict[str, list[float]] = json.loads(outputs[0])
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", type=int, default=24)
    parser.add_argument("--compute", type=float, default=0.02, help="seconds a module and way")
    parser.add_argument("--communication", type=float, default=0.015, help="seconds an all-reduce")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, help="be this rank, not the one who starts them")
    parser.add_argument("--store", help="file by which ranks find each other")
    options = parser.parse_args()
    if options.rank is None:
        print(json.dumps(measure(options.modules, options.compute, options.communication, options.rounds)))
    else:
        print(json.dumps(run_rank(options)))


if __name__ == "__main__":
    main()
