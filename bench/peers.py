"""What SPAM is compared with: torch's AdamW, SPAM as others run it, and a plain loop that shows the memory limit."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ladderkern

# A step count of the steady phase: past the 20 unclipped steps and far before the first reset at 500.
SETTLED = 24.0
LR = 1e-6


class Problem(NamedTuple):
    """Shapes and dtype of the parameters, and so of their gradients, of one comparison."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32

    def parameters(self) -> list[Tensor]:
        """Fresh parameters with gradients, the same numbers at each call."""
        generator = torch.Generator().manual_seed(0)
        params = []
        for shape in self.shapes:
            p = torch.nn.Parameter(torch.empty(shape).uniform_(-1, 1, generator=generator).to(self.dtype))
            p.grad = torch.empty(shape).uniform_(-0.01, 0.01, generator=generator).to(self.dtype)
            params.append(p)
        return params


class Peer:
    """One optimizer on parameters of its own, in its steady phase: clipping is live, and no reset is near."""

    def __init__(self, params: list[Tensor], optimizer: Any, keeps_gradients: bool = True) -> None:
        self.params, self.optimizer = params, optimizer
        self.gradients = None if keeps_gradients else [p.grad.clone() for p in params]
        self.step()  # allocates the state
        self._settle()

    def _settle(self) -> None:
        for s in map(self.optimizer.state.get, self.params):
            if isinstance(s.get("step"), Tensor):
                s["step"].fill_(SETTLED)
            elif "step" in s:
                s["step"] = int(SETTLED)
        for counter in ("calls", "total_step"):
            if counter in self.optimizer.state:
                self.optimizer.state[counter] = int(SETTLED)

    def prepare(self) -> None:
        """Before each step and not timed: gives back the gradients of a peer that overwrites them."""
        if self.gradients is not None:
            for p, gradient in zip(self.params, self.gradients, strict=True):
                p.grad.copy_(gradient)

    def step(self) -> None:
        """What is timed: one whole step, Python included."""
        self.optimizer.step()


Builder = Callable[[], Any]


def spam(problem: Problem, **options: Any) -> Builder:
    """``ladderkern.SPAM``."""

    def build() -> Peer:
        params = problem.parameters()
        return Peer(params, ladderkern.SPAM(params, lr=LR, **options))

    return build


def adamw(problem: Problem, **options: Any) -> Builder:
    """``torch.optim.AdamW``; without weight decay where none is asked for, as SPAM."""

    def build() -> Peer:
        params = problem.parameters()
        return Peer(params, torch.optim.AdamW(params, lr=LR, **{"weight_decay": 0.0, **options}))

    return build


def eager_spam(problem: Problem, density: float | None) -> Builder:
    """:class:`EagerSPAM`; with a density it leaves the update in the gradients, as the published code."""

    def build() -> Peer:
        params = problem.parameters()
        return Peer(params, EagerSPAM(params, density), keeps_gradients=density is None)

    return build


def compiled_spam(problem: Problem) -> Builder:
    """:class:`CompiledSPAM`."""

    def build() -> Peer:
        params = problem.parameters()
        return Peer(params, CompiledSPAM(params))

    return build


def kozistr_spam(problem: Problem) -> Builder:
    """``pytorch_optimizer``'s SPAM at its defaults: density 1.0, masks and all.

    Its spike clipping changed nothing in releases before 4 (the clipped values were lost); 4.1.0 clips.
    """

    def build() -> Peer:
        from pytorch_optimizer import SPAM

        params = problem.parameters()
        return Peer(params, SPAM(params, lr=LR), keeps_gradients=False)

    return build


def plain_loop(problem: Problem) -> Builder:
    """The loop of ``stream.c``: AdamW's 28 bytes a float32 element, and no optimizer."""
    return lambda: PlainLoop(problem.parameters())


class EagerSPAM(torch.optim.Optimizer):
    """SPAM one parameter and one ATen op at a time, with the ops of the published code in the same order and number.

    With a density every parameter is gathered through its boolean mask and scattered back, density 1.0 included: that
    is what the README of the published code runs. Resets and redraws are left out: nothing is timed at a reset.
    """

    def __init__(self, params: list[Tensor], density: float | None) -> None:
        super().__init__(params, {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-6, "threshold": 5000.0})
        self.density = density
        self.state["calls"] = 0

    @torch.no_grad()
    def step(self) -> None:
        self.state["calls"] += 1
        for group in self.param_groups:
            for p in group["params"]:
                self._step_one(p, self.state[p], group)

    def _step_one(self, p: Tensor, s: dict[str, Any], group: dict[str, Any]) -> None:
        if self.density is not None and "mask" not in s:
            s["mask"] = torch.rand_like(p) < self.density
        mask = s.get("mask")
        gradient = p.grad if mask is None else p.grad[mask.bool()]
        if "exp_avg" not in s:
            s.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
        m, v = s["exp_avg"], s["exp_avg_sq"]
        s["step"] += 1
        if self.state["calls"] >= 20:
            spikes = gradient**2 > group["threshold"] * v
            gradient[spikes] = gradient[spikes].sign() * torch.sqrt(v[spikes] * group["threshold"])
        beta1, beta2 = group["betas"]
        m.mul_(beta1).add_(gradient, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = m / v.sqrt().add_(group["eps"])
        size = group["lr"] * math.sqrt(1 - beta2 ** s["step"]) / (1 - beta1 ** s["step"])
        if mask is not None:
            update = _scatter(update, mask, p.grad)
        p.add_(update, alpha=-size)


def _scatter(update: Tensor, mask: Tensor, full: Tensor) -> Tensor:
    full[mask] = update
    full[~mask] = 0
    return full.mul_(1.0)  # the warm-up's factor, 1 between warm-ups


class CompiledSPAM(torch.optim.Optimizer):
    """Dense SPAM as a user would write it for ``torch.compile``: the maths of one parameter, compiled once a shape."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-6, "threshold": 5000.0})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    s.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                s["step"] += 1
                size = group["lr"] * math.sqrt(1 - beta2 ** s["step"]) / (1 - beta1 ** s["step"])
                bound = group["threshold"] if s["step"] >= 20 else math.inf
                scalars = torch.tensor(size), torch.tensor(bound)  # tensors, lest each step compile anew
                moments = s["exp_avg"], s["exp_avg_sq"]
                _compiled_update()(p, p.grad, *moments, *scalars, beta1, beta2, group["eps"])


def _update(p, gradient, m, v, size, threshold, beta1, beta2, eps):
    bound = threshold * v
    gradient = torch.where(gradient * gradient > bound, gradient.sign() * bound.sqrt(), gradient)
    m.mul_(beta1).add_(gradient, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    p.sub_(size * m / (v.sqrt() + eps))


@functools.cache
def _compiled_update() -> Callable[..., None]:
    return torch.compile(_update, fullgraph=True, dynamic=False)


class PlainLoop:
    """One pass over p, g, m and v a step, on as many threads as torch uses."""

    def __init__(self, params: list[Tensor]) -> None:
        moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
        self.lists = [params, [p.grad for p in params], *moments]
        self.library = compiled_loop("stream")
        pointers = ctypes.c_void_p * len(params)
        self.arguments = [pointers(*(t.data_ptr() for t in tensors)) for tensors in self.lists]
        self.numel = (ctypes.c_int64 * len(params))(*(p.numel() for p in params))
        self.threads = ctypes.c_int64(torch.get_num_threads())
        self.step()

    def prepare(self) -> None:
        """Nothing: the loop leaves its gradients alone."""

    def step(self) -> None:
        failed = self.library.stream(*self.arguments, self.numel, ctypes.c_int64(len(self.numel)), self.threads)
        if failed:
            raise RuntimeError(f"stream.c could not run on {self.threads.value} threads")


@functools.cache
def compiled_loop(name: str) -> ctypes.CDLL:
    """``<name>.c`` of this folder, compiled for this machine."""
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}.so"
        compiler = [os.environ.get("CXX", "g++"), "-x", "c", "-std=gnu11", "-O3", "-march=native"]
        subprocess.run([*compiler, "-shared", "-fPIC", "-pthread", str(source), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))
