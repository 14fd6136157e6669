"""Small branches in parts, one part a rank, and the ladder equation over them: the law of every LadderStack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import floats

HIDDEN = 6
DELAYS: dict[str, int | list[int]] = {
    "standard": 0,
    "ladder": 1,
    "two late": 2,
    "hybrid": [0, 0, 0, 1, 1, 1],
    "back to standard": [1, 1, 1, 0, 0, 1],
    "mixed": [0, 1, 2, 0, 3, 1],
    "growing": [0, 1, 2, 3, 4, 5],  # all read the input
}


class Part(nn.Module):
    """What one rank computes of a branch. The last operation saves its result, so that summing it in place spoils gradients."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = nn.Parameter(floats((HIDDEN, 5), dtype, seed=seed))
        self.down = nn.Parameter(floats((5, HIDDEN), dtype, seed=seed + 1))

    def forward(self, normed: Tensor) -> Tensor:
        """[..., HIDDEN] -> [..., HIDDEN]"""
        return torch.sigmoid(torch.tanh(normed @ self.up) @ self.down)


class Branch(nn.Module):
    """The sum of its parts, which are those of ``ranks``."""

    def __init__(self, index: int, ranks: Iterable[int], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(1 + 0.1 * floats((HIDDEN,), dtype, seed=1000 + index))
        self.eps = 1e-6
        self.ranks = list(ranks)
        self.parts = nn.ModuleList([Part(2000 + 100 * index + 10 * rank, dtype) for rank in self.ranks])

    def forward(self, normed: Tensor, scale: float = 1.0) -> Tensor:
        """[..., HIDDEN] -> [..., HIDDEN]"""
        first, *others = (part(normed * scale) for part in self.parts)
        return sum(others, first)


def branches(
    ranks: Iterable[int], count: int = 6, kind: type[Branch] = Branch, dtype: torch.dtype = torch.float64
) -> list[Branch]:
    """``count`` branches of a kind with the parts of ``ranks``, the same at each call."""
    ranks = list(ranks)
    return [kind(i, ranks, dtype) for i in range(count)]


def stream(dtype: torch.dtype = torch.float64) -> Tensor:
    """What goes into a stack, a leaf.  [2, 3, HIDDEN]"""
    return floats((2, 3, HIDDEN), dtype, seed=7).requires_grad_()


def recurrence(modules: Sequence[Any], delay: int | Sequence[int], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``x_i = x_{i-1} + h_i(x_{i-1-d_i})``, branch by branch, in plain PyTorch; an index below 0 reads x."""
    delays = [delay] * len(modules) if isinstance(delay, int) else delay
    streams = [x]
    for i, (branch, d) in enumerate(zip(modules, delays, strict=True)):
        read = streams[max(i - d, 0)]
        normed = read * torch.rsqrt(read.pow(2).mean(-1, keepdim=True) + branch.eps) * branch.norm_weight
        streams.append(streams[-1] + branch(normed, *args, **kwargs))
    return streams[-1]


def loss_of(y: Tensor) -> Tensor:
    """A number in which every element counts differently."""
    return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sin().sum()


def gradients(y: Tensor, x: Tensor, modules: Sequence[Branch]) -> dict[str, Tensor]:
    """Of the loss of y in x and all parameters; a part's name holds its rank."""
    tensors = {"x": x}
    for i, module in enumerate(modules):
        tensors[f"{i}.norm_weight"] = module.norm_weight
        for rank, part in zip(module.ranks, module.parts, strict=True):
            tensors.update({f"{i}.{rank}.{name}": parameter for name, parameter in part.named_parameters()})
    return dict(zip(tensors, torch.autograd.grad(loss_of(y), list(tensors.values())), strict=True))


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every gradient of ``actual`` is that of the same name, as assert_close understands it.

    Raises:
        AssertionError: naming the tensor.
    """
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], msg=partial("{}: {}".format, name))
