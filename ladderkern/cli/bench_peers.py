"""What a user would run instead of ladderkern's ops: plain PyTorch, written with care, that torch.compile takes whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
BETAS = (0.9, 0.999)
THRESHOLD = 5000.0


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def spam_update(p: Tensor, gradient: Tensor, m: Tensor, v: Tensor, size: Tensor, threshold: Tensor) -> None:
    """One parameter's step of dense SPAM: clip spikes, move the moments, move the parameter."""
    bound = threshold * v
    gradient = torch.where(gradient * gradient > bound, gradient.sign() * bound.sqrt(), gradient)
    m.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    p.sub_(size * m / (v.sqrt() + EPS))


class PlainSPAM(torch.optim.Optimizer):
    """SPAM between two resets, one parameter after the other.

    Args:
        params: what it steps.
        lr: the learning rate.
        update: :func:`spam_update`, or made of it.
        rows: of each parameter the rows that hold moments and move; None is all.
    """

    def __init__(
        self, params: list[Tensor], lr: float, update: Any = spam_update, rows: Sequence[Tensor] | None = None
    ) -> None:
        super().__init__(params, {"lr": lr})
        self.update, self.rows = update, rows

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step; nothing is clipped in the first 20."""
        (group,) = self.param_groups
        for i, p in enumerate(group["params"]):
            moved, gradient = (p, p.grad) if self.rows is None else (p[self.rows[i]], p.grad[self.rows[i]])
            s = self.state[p]
            if not s:
                s.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(moved), exp_avg_sq=torch.zeros_like(moved))
            s["step"] += 1
            n = s["step"].item()
            size = group["lr"] * math.sqrt(1 - BETAS[1] ** n) / (1 - BETAS[0] ** n)
            # Tensors, lest each step be compiled anew.
            scalars = (torch.tensor(x, dtype=p.dtype) for x in (size, THRESHOLD if n >= 20 else math.inf))
            self.update(moved, gradient, s["exp_avg"], s["exp_avg_sq"], *scalars)
            if self.rows is not None:
                p[self.rows[i]] = moved


def add_llama_norm(x: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """An addition, and the operations of transformers' ``LlamaRMSNorm``."""
    stream = x + update
    values = stream.to(wide(x.dtype))
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * values.to(x.dtype), stream


def add_torch_norm(x: Tensor, update: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """An addition and ``F.rms_norm``."""
    stream = x + update
    return F.rms_norm(stream, (x.shape[-1],), weight, EPS), stream


def discrepancy(logits: Tensor, labels: Tensor, distances: Tensor, start: int) -> Tensor:
    """The mean over rows, all of which are image rows, of the expected distance to the label.

    A softmax of the image columns times gathered rows of the table.            [T, V], [T], [N, N] -> scalar
    """
    p = torch.softmax(logits[:, start : start + distances.shape[0]], dim=-1, dtype=wide(logits.dtype))
    return (p * distances[labels - start]).sum(dim=-1).mean()


def joint(logits: Tensor, labels: Tensor, distances: Tensor, start: int) -> Tensor:
    """``F.cross_entropy`` plus :func:`discrepancy`."""
    return F.cross_entropy(logits, labels) + discrepancy(logits, labels, distances, start)


def scores(logits: Tensor, response: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """Margin, probability and its logarithm of each step; least probability, log of the product and mean of each response.

    Args:
        logits: of all steps.                                                                              [S, 2]
        response: the response of each step.                                                               [S]
        count: steps of each response, at least one.                                                       [R]
    """
    two = logits.to(wide(logits.dtype))
    margin = two[:, 1] - two[:, 0]
    prob, log_prob = margin.sigmoid(), F.logsigmoid(margin)
    least = prob.new_full(count.shape, math.inf).scatter_reduce(0, response, prob, "amin")
    log_product, total = (prob.new_zeros(count.shape).scatter_add(0, response, x) for x in (log_prob, prob))
    return margin, prob, log_prob, least, log_product, total / count


def card_lists(logits: Tensor, mask: Tensor) -> list[list[float]]:
    """What the Qwen model card does: the softmax of all tokens, 0 off the mask; row by row what is not 0.  [B, T, 2], [B, T]"""
    masked = torch.softmax(logits, dim=-1) * mask.unsqueeze(-1)
    return [row[row != 0].view(-1, 2)[:, 1].tolist() for row in masked]
