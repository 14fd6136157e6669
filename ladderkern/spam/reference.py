"""SPAM in plain PyTorch: the law that every backend must match.

Huang et al. 2025, "SPAM: Spike-Aware Adam with Momentum Reset" (arXiv 2501.06842), in the arithmetic of the published code
(TianjinYellow/SPAM-Optimizer, e8185fb) except where the docstring of :class:`ladderkern.SPAM` says otherwise. Nothing here
reads a device value on the host: the phase of the cycle is computed from the ``step`` tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STRATUM = 16  # a draw takes 16*density elements (or rows) of every 16 consecutive ones
_MASK_STREAM, _ROUNDING_STREAM = 0, 0x5F3759DF  # keeps the draws of masks and of roundings apart
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Hyper:
    """The scalars of one step, as :class:`ladderkern.SPAM` names them; ``density_16ths`` is 16*density."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    threshold: float
    reset_interval: int
    warmup_steps: int
    unclipped_steps: int
    cycle_correction: bool
    freeze_zero_variance: bool
    maximize: bool
    density_16ths: int
    row_mask: bool
    seed: int


# ------------------------------------------------------------------------------------------------ scalars of the schedule


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 for x <= 0 by one polynomial, the same in C++ and Triton: 2^n (q + 1) - 1, q = expm1(x - n ln 2)."""
    x = x.clamp(min=-80.0)
    n = torch.round(x * 1.4426950408889634)
    r = (x - n * 0.693359375) - n * -2.12194440054690583e-4
    q = torch.full_like(r, 1.0 / math.factorial(14))
    for i in range(13, 0, -1):
        q = q * r + 1.0 / math.factorial(i)
    scale = torch.exp2(n)
    return scale * (q * r) + (scale - 1.0)


def sine(x: Tensor) -> Tensor:
    """sin(x) on [0, pi/2] by one polynomial, the same in C++ and Triton."""
    square = x * x
    q = torch.full_like(x, 1.0 / math.factorial(21))
    for i in range(19, 0, -2):
        q = 1.0 / math.factorial(i) - q * square
    return q * x


def phase(n: Tensor, reset_interval: int) -> tuple[Tensor, Tensor]:
    """(cycle, k) of the n-th step, n >= 1, as int64: cycle = n // reset_interval, k = n mod reset_interval."""
    n = n.to(torch.int64)
    if reset_interval == 0:
        return torch.zeros_like(n), n
    return n // reset_interval, n % reset_interval


def warmup(cycle: Tensor, k: Tensor, warmup_steps: int, dtype: torch.dtype) -> Tensor:
    """s(k) = 0.01 + 0.99 sin^2(pi k / (2 (W + 1))) for k < W after a reset, else 1."""
    angle = k.clamp(max=warmup_steps).to(dtype) * (0.5 * math.pi / (warmup_steps + 1))
    scale = 0.01 + 0.99 * sine(angle) ** 2
    return torch.where((cycle > 0) & (k < warmup_steps), scale, torch.ones_like(scale))


def step_scalars(n: Tensor, lr: Tensor, hyper: Hyper, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(step size, decay factor) of the n-th step: lr * s(k) * sqrt(1 - beta2^t) / (1 - beta1^t) and 1 - lr * weight_decay."""
    cycle, k = phase(n, hyper.reset_interval)
    t = torch.where(cycle > 0, k + 1, n.to(torch.int64)) if hyper.cycle_correction else n
    t = t.to(dtype)
    correction1 = -expm1(t * _log(hyper.beta1))
    correction2 = -expm1(t * _log(hyper.beta2))
    size = lr.to(dtype) * warmup(cycle, k, hyper.warmup_steps, dtype) * torch.sqrt(correction2) / correction1
    return size, (1.0 - lr.to(torch.float64) * hyper.weight_decay).to(dtype)


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -1e4


# ------------------------------------------------------------------------------------------- counter-based random numbers


def philox(counter: Sequence[Any], seed: int, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011) of four 32-bit counter words, held in int64; key = the seed's halves."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, (seed >> 32 & _WORD) ^ stream
    for _ in range(10):
        hi0, lo0 = _multiply(0xD2511F53, c0)
        hi1, lo1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def _multiply(a: int, b: Any) -> tuple[Any, Any]:
    """High and low word of the product of two 32-bit numbers, by halves, so that no int64 overflows."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def random_words(position: Tensor, last: Tensor | int, index: int, seed: int, stream: int) -> Tensor:
    """One 32-bit word for each position (int64): word position % 4 of the Philox block position // 4."""
    block = position >> 2
    words = torch.stack(philox((block & _WORD, block >> 32, last, index), seed, stream))
    return words.gather(0, (position & 3).unsqueeze(0)).squeeze(0)


def stratum_mask(stratum: Tensor, cycle: Tensor | int, index: int, chosen: int, seed: int) -> Tensor:
    """Which ``chosen`` of 16 a stratum draws in a cycle, uniform over all combinations.  [...] int64 -> [..., 16] bool

    The word's rank among the C(16, chosen) combinations in lexicographic order, unranked position by position.
    """
    word = random_words(stratum, cycle, index, seed, _MASK_STREAM)
    rank = word * math.comb(STRATUM, chosen) >> 32
    table = [[math.comb(STRATUM - 1 - i, left - 1) if left else 0 for left in range(STRATUM + 1)] for i in range(STRATUM)]
    combinations = torch.tensor(table, dtype=torch.int64, device=stratum.device)
    left = torch.full_like(rank, chosen)
    bits = []
    for i in range(STRATUM):
        below = combinations[i][left]
        taken = rank < below
        rank = torch.where(taken, rank, rank - below)
        left = left - taken.to(torch.int64)
        bits.append(taken)
    return torch.stack(bits, dim=-1)


def round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down with probability by distance; ``noise`` is uniform in [0, 2^16).  NaN and inf stay."""
    bits = x.view(torch.int32).to(torch.int64)
    rounded = torch.where(torch.isfinite(x), bits + noise & ~0xFFFF, bits)
    rounded = torch.where(torch.isnan(x), bits | 0x400000, rounded)
    return (rounded >> 16).to(torch.int16).view(torch.bfloat16)


# ----------------------------------------------------------------------------------------------------- where elements lie


def global_position(numel: int, placement: Sequence[int] | None, device: torch.device | None) -> Tensor:
    """Position in the whole parameter of each element of this shard.  [numel] int64

    ``placement`` = (local block, global block, offset, row offset): element e lies at e // local * global + offset + e % local.
    """
    e = torch.arange(numel, device=device)
    if placement is None:
        return e
    local, whole, offset, _ = placement
    return e // max(local, 1) * whole + offset + e % max(local, 1)


def selection(
    shape: torch.Size,
    cycle: Tensor | int,
    index: int,
    chosen: int,
    row_mask: bool,
    seed: int,
    placement: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The drawn elements as a bool mask of ``shape``, a parameter or its shard; ``chosen`` = 16 * density."""
    if row_mask:
        first = placement[3] if placement is not None else 0
        stratum = torch.arange(shape[0] // STRATUM, device=device) + first // STRATUM
        rows = stratum_mask(stratum, cycle, index, chosen, seed).reshape(-1)
        return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    stratum = global_position(shape.numel(), placement, device)[::STRATUM] // STRATUM
    return stratum_mask(stratum, cycle, index, chosen, seed).view(shape)


def compact_positions(drawn: Tensor, count: int) -> Tensor:
    """Flat positions of the drawn elements, in order.  bool [...] -> [count] int64 (a fixed size: no synchronisation)"""
    rank = torch.cumsum(drawn.reshape(-1).to(torch.int64), 0) - 1
    slot = torch.where(drawn.reshape(-1), rank, count)
    positions = torch.arange(slot.numel(), device=drawn.device)
    return torch.zeros(count + 1, dtype=torch.int64, device=drawn.device).scatter(0, slot, positions)[:count]


# ------------------------------------------------------------------------------------------------------------- the update


def _sqrt(x: Tensor) -> Tensor:
    """sqrt with derivative 0 at 0, where nothing has moved yet."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, x)))


def spam_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: Tensor,
    hyper: Hyper,
    index: int = 0,
    placement: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One SPAM step of one parameter: (param, exp_avg, exp_avg_sq, step) after it; the inputs are not touched.

    Moments smaller than the parameter are compact: they belong to the drawn elements, in order. Arithmetic is float32, float64
    for float64 parameters.
    """
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    n = step + 1
    cycle, k = phase(n, hyper.reset_interval)
    step_size, decay = step_scalars(n, lr.reshape(()), hyper, dtype)
    p = param.to(dtype) * decay
    g = -grad.to(dtype) if hyper.maximize else grad.to(dtype)
    masked = exp_avg.shape != param.shape
    position = None
    if masked:
        draw = (hyper.density_16ths, hyper.row_mask, hyper.seed, placement, param.device)
        position = compact_positions(selection(param.shape, cycle, index, *draw), exp_avg.numel())
        g = g.reshape(-1)[position].view(exp_avg.shape)

    restart = (k == 0) & (cycle > 0)
    m = torch.where(restart, 0.0, exp_avg.to(dtype))
    v = torch.where(restart, 0.0, exp_avg_sq.to(dtype))
    if hyper.threshold > 0:
        bound = hyper.threshold * v
        clip = (g * g > bound) & (k >= hyper.unclipped_steps)
        if not hyper.freeze_zero_variance:
            clip = clip & (v != 0)
        g = torch.where(clip, torch.sign(g) * _sqrt(bound), g)
    m = hyper.beta1 * m + (1.0 - hyper.beta1) * g
    v = hyper.beta2 * v + (1.0 - hyper.beta2) * (g * g)
    update = step_size * (m / (_sqrt(v) + hyper.eps))
    if position is None:
        p = p - update
    else:
        flat = p.reshape(-1)
        p = flat.scatter(0, position, flat[position] - update.reshape(-1)).view(param.shape)
    moments = [m.to(exp_avg.dtype), v.to(exp_avg_sq.dtype)]
    if exp_avg.dtype == torch.bfloat16:
        element = global_position(param.numel(), placement, param.device)
        element = element if position is None else element[position]
        noise = random_words(element, n.to(torch.int64), index, hyper.seed, _ROUNDING_STREAM).view(exp_avg.shape)
        halves = (noise & 0xFFFF, noise >> 16)
        moments = [round_stochastically(x.float(), half) for x, half in zip((m, v), halves, strict=True)]
    return p.to(param.dtype), moments[0], moments[1], n


def spam_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    lr: Tensor,
    hyper: Hyper,
    indices: Sequence[int],
    placement: Sequence[int],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One SPAM step of every parameter of a list, in place; with ``found_inf`` nonzero nothing changes at all."""
    grad_scale = None if grad_scale is None else grad_scale.reshape(())
    found_inf = None if found_inf is None else found_inf.reshape(())
    for i, tensors in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True)):
        param, grad, exp_avg, exp_avg_sq, step = tensors
        g = grad
        if grad_scale is not None:
            wide = torch.float64 if param.dtype == torch.float64 else torch.float32
            g = grad.to(wide) / grad_scale.to(grad.device, wide)
        where = placement[4 * i : 4 * i + 4] or None
        new = spam_update(param, g, exp_avg, exp_avg_sq, step, lr.to(param.device), hyper, indices[i], where)
        if grad_scale is not None:
            grad.copy_(g if found_inf is None else torch.where(found_inf.to(grad.device) != 0, grad, g.to(grad.dtype)))
        for old, fresh in zip((param, exp_avg, exp_avg_sq, step), new, strict=True):
            old.copy_(fresh if found_inf is None else torch.where(found_inf.to(old.device) != 0, old, fresh))
