"""What the fused norms are compared with: additions and transformers' norm, torch.compile of them, and loops over memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import torch
from peers import compiled_loop
from torch import Tensor

import ladderkern

EPS = 1e-6
AddNorm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # x, update, weight -> normed, stream
Builder = Callable[[], "Peer | PlainNorm"]


class NormProblem(NamedTuple):
    """Rows of a residual stream, an update and a weight, all of one dtype."""

    rows: int
    hidden: int
    dtype: torch.dtype

    def numbers(self, seed: int) -> Tensor:
        """Normal rows, the same at each call.  [rows, hidden]"""
        return torch.randn((self.rows, self.hidden), generator=torch.Generator().manual_seed(seed)).to(self.dtype)


class Peer:
    """One add and norm; a step is its forward and its backward from given gradients of both outputs."""

    def __init__(self, problem: NormProblem, add_norm: AddNorm) -> None:
        self.add_norm = add_norm
        self.leaves = [problem.numbers(seed).requires_grad_() for seed in (0, 1)]
        self.weight = torch.ones(problem.hidden, dtype=problem.dtype).requires_grad_()
        self.grads = [problem.numbers(seed) for seed in (2, 3)]
        self.results: list[Tensor] = []
        self.prepare()

    def prepare(self) -> None:
        """Before each step and not timed: gives the last results back; x and the update are no leaves, as in a model."""
        self.results = []
        self.inputs = [*(leaf.view_as(leaf) for leaf in self.leaves), self.weight]

    def step(self) -> None:
        """What is timed: forward and backward."""
        outputs = self.add_norm(*self.inputs)
        gradients = torch.autograd.grad(outputs, self.inputs, self.grads)
        self.results = [*(t.detach() for t in outputs), *gradients]


def ours(problem: NormProblem) -> Builder:
    """``ladderkern.add_rms_norm``."""
    return lambda: Peer(problem, lambda x, update, weight: ladderkern.add_rms_norm(x, update, weight, EPS))


def eager(problem: NormProblem) -> Builder:
    """An addition, and the operations of transformers' ``LlamaRMSNorm``."""
    return lambda: Peer(problem, _add_llama_norm)


def compiled(problem: NormProblem) -> Builder:
    """The same under ``torch.compile``."""
    return lambda: Peer(problem, torch.compile(_add_llama_norm, fullgraph=True, dynamic=False))


def _add_llama_norm(x: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    stream = x + update
    wide = stream.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(stream.dtype), stream


class PlainNorm:
    """One pass of ``norm_stream.c`` over float32 rows, on as many threads as torch uses."""

    def __init__(self, problem: NormProblem) -> None:
        self.tensors = [problem._replace(dtype=torch.float32).numbers(seed) for seed in range(7)]
        self.library = compiled_loop("norm_stream")
        self.pointers = [ctypes.c_void_p(t.data_ptr()) for t in self.tensors]
        self.sizes = ctypes.c_int64(self.tensors[0].numel()), ctypes.c_int64(torch.get_num_threads())

    def prepare(self) -> None:
        """Nothing: each step writes the same."""

    def step(self) -> None:
        """What is timed: both loops."""
        if self.library.norm_stream(*self.pointers, *self.sizes):
            raise RuntimeError(f"norm_stream.c could not run on {self.sizes[1].value} threads")


def plain_norm(problem: NormProblem) -> Builder:
    """The loops of ``norm_stream.c``: the traffic of a fused add and norm, and no norm."""
    return lambda: PlainNorm(problem)
