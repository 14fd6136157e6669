"""What ``python -m ladderkern bench`` compares: each of our ops with what a user would run instead, on the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import ladderkern

from ..testing import work
from . import bench_peers as plain

COMPILED = "torch.compile"
LR = 1e-3


class Call:
    """A function of nothing, timed; what it returned last is given back before the next call."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None

    def prepare(self) -> None:
        """Before each call and not timed: gives the last result's memory back."""
        self.result = None

    def step(self) -> None:
        """What is timed: one call."""
        self.result = self.function()


Builder = Callable[[], Call]


class At(NamedTuple):
    """Where a case runs, and how large it is."""

    device: torch.device
    dtype: torch.dtype  # of logits and of the residual stream; optimizers step float32 parameters
    size: str = "full"  # "quick"; "check": a moment's work, to see that what is timed is right
    exact: bool = False  # the same numbers in float64
    halved: int = 0  # so often, to fit into memory

    def pick(self, **sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Of sizes named check, quick, cpu and cuda the one that fits; ``halved`` halves the first number."""
        first, *rest = sizes[self.size if self.size != "full" else self.device.type]
        return (max(1, first >> self.halved), *rest)

    def numbers(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, the same at each call."""
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = torch.randn(shape, generator=generator, device=self.device).to(dtype or self.dtype)
        return drawn.double() if self.exact else drawn

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """Uniform in [low, high), the same at each call.  [count]"""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randint(low, high, (count,), generator=generator, device=self.device)


class Case(NamedTuple):
    """One comparison. A peer's time is divided by that of ours."""

    title: str
    ours: Builder
    peers: dict[str, Builder]
    plain: Builder  # plain PyTorch that computes the same, against which ours is held before it is timed
    least: int  # bytes that any implementation must move
    held: int  # bytes that a peer keeps while it is timed, about
    calls: int = 1  # timed together, where one is short
    same: Callable[[Any], Sequence[Tensor]] = lambda result: result  # of what ours returns, what the plain one returns


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


# ------------------------------------------------------------------------------------------------------------------ optimizers


def _stepper(at: At, shapes: Sequence[tuple[int, ...]], make: Callable[[list[Tensor]], Any]) -> Builder:
    """Steps of an optimizer past its first ones: the spikes of every fourth row are clipped, and no reset is near."""

    def build() -> Call:
        params: list[Tensor] = []
        for i, shape in enumerate(shapes):
            params.append(torch.nn.Parameter(at.numbers(*shape, seed=2 * i, dtype=torch.float32)))
            params[-1].grad = at.numbers(*shape, seed=2 * i + 1, dtype=torch.float32) / 100
        optimizer = make(params)
        optimizer.step()  # makes the state
        for param, state in optimizer.state.items():
            state["step"].fill_(24)
            param.grad[::4] *= 100

        def step() -> list[Tensor]:
            optimizer.step()
            return params

        return Call(step)

    return build


def _spam(at: At, shapes: list[tuple[int, ...]], title: str, calls: int = 1, density: float = 1.0) -> Case:
    numel = sum(torch.Size(shape).numel() for shape in shapes)
    f32 = torch.float32
    how: dict[str, Any] = {"density": density, "mask_unit": "row"}
    rows = [ladderkern.spam.mask(shape, index=i, **how)[:, 0].to(at.device) for i, shape in enumerate(shapes)]
    compiled = _compiled(plain.spam_update)
    peers = {
        "AdamW fused": _stepper(at, shapes, lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0, fused=True)),
        "AdamW foreach": _stepper(at, shapes, lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0, foreach=True)),
        "plain SPAM": _stepper(at, shapes, lambda p: plain.PlainSPAM(p, LR)),
        COMPILED: _stepper(at, shapes, lambda p: plain.PlainSPAM(p, LR, compiled)),
    }
    same = peers["plain SPAM"]
    if density < 1:  # in plain PyTorch rows cost time, and nobody would run it: an optimizer of all of them is the rival
        peers.pop(COMPILED)
        same = _stepper(at, shapes, lambda p: plain.PlainSPAM(p, LR, rows=rows))
    return Case(
        title,
        _stepper(at, shapes, lambda p: ladderkern.SPAM(p, lr=LR, capturable=at.device.type == "cuda", **how)),
        peers,
        same,
        work.spam_step(numel, f32, f32, f32, density=density, row_mask=density < 1).bytes,
        held=16 * numel,
        calls=calls,
    )


def _large(at: At) -> list[tuple[int, ...]]:
    rows, columns, count = at.pick(check=(32, 48, 2), quick=(512, 2048, 2), cpu=(2048, 2048, 4), cuda=(4096, 4096, 16))
    return [(rows, columns)] * count


def _sizes(shapes: list[tuple[int, ...]]) -> str:
    return f"{len(shapes)} × {list(shapes[0])}"


def spam(at: At) -> Case:
    """A dense step of a few large tensors."""
    return _spam(at, _large(at), f"SPAM, dense, {_sizes(_large(at))} float32")


def spam_rows(at: At) -> Case:
    """A step of a quarter of the rows, whose moments alone are held."""
    return _spam(at, _large(at), f"SPAM, density 1/4 by row, {_sizes(_large(at))} float32", density=0.25)


def spam_small(at: At) -> Case:
    """A dense step of many small tensors."""
    (count,) = at.pick(check=(3,), quick=(50,), cpu=(200,), cuda=(200,))
    shapes: list[tuple[int, ...]] = [(64, 64)] * count
    return _spam(at, shapes, f"SPAM, dense, {_sizes(shapes)} float32", calls=5)


# ---------------------------------------------------------------------------------------------------------------------- losses


def _loss(at: At, name: str, ours: Callable[..., Any], eager: Callable[..., Tensor], **more: Callable[..., Tensor]) -> Case:
    rows, codes, columns = at.pick(
        check=(6, 64, 160), quick=(64, 2048, 16384), cpu=(512, 8192, 65536), cuda=(4096, 8192, 65536)
    )
    start = 4
    labels = at.integers(start, start + codes, rows)

    @functools.cache
    def table() -> ladderkern.DistanceTable:
        return ladderkern.DistanceTable(at.numbers(codes, 64, seed=2, dtype=torch.float32).float())

    @functools.cache
    def distances() -> Tensor:
        every = table()(torch.arange(codes, device=at.device))
        return every.double() if at.exact else every.float()

    def forward_and_backward(loss: Callable[[Tensor], Tensor]) -> Builder:
        def build() -> Call:
            logits = (2 * at.numbers(rows, columns)).requires_grad_()

            def both() -> tuple[Tensor, Tensor]:
                value = loss(logits)
                return value.detach(), torch.autograd.grad(value, logits)[0]

            return Call(both)

        return build

    def with_table(loss: Callable[..., Tensor]) -> Builder:
        return forward_and_backward(lambda x: loss(x, labels, distances(), start))

    def of_labels(loss: Callable[..., Tensor]) -> Builder:
        return forward_and_backward(lambda x: loss(x, labels))

    peers = {"eager": with_table(eager), COMPILED: with_table(_compiled(eager))}
    peers |= {title: of_labels(loss) for title, loss in more.items()}
    counted = work.Rows(rows, rows)
    if eager is plain.joint:
        passes = (work.joint_forward(counted, columns, codes, at.dtype), work.joint_backward(counted, columns, codes, at.dtype))
    else:
        passes = (
            work.discrepancy_forward(counted, codes, at.dtype),
            work.discrepancy_backward(counted, columns, codes, at.dtype),
        )
    return Case(
        f"{name}, [{rows}, {columns}] of {codes} codes, {_name(at.dtype)}",
        forward_and_backward(lambda x: ours(x, labels, table(), image_start=start)),
        peers,
        peers["eager"],
        sum(each.bytes for each in passes),
        held=rows * columns * (at.dtype.itemsize + 2 * 4),
    )


def discrepancy(at: At) -> Case:
    """The token discrepancy alone, forward and backward."""
    return _loss(at, "token discrepancy", ladderkern.token_discrepancy_loss, plain.discrepancy)


def joint(at: At) -> Case:
    """Cross-entropy and the discrepancy, forward and backward."""
    only = {"F.cross_entropy alone": F.cross_entropy}
    return _loss(at, "joint loss", ladderkern.cross_entropy_with_discrepancy, plain.joint, **only)


# ------------------------------------------------------------------------------------------------------------------ step scores


def _scored(at: At, shape: tuple[int, ...], score: Callable[[Tensor], Any]) -> Builder:
    def build() -> Call:
        logits = 2 * at.numbers(*shape)
        return Call(lambda: score(logits))

    return build


def prm(at: At) -> Case:
    """All scores of packed steps; the peers compute 6 of them."""
    (responses,) = at.pick(check=(7,), quick=(1000,), cpu=(3400,), cuda=(100_000,))
    count = at.integers(1, 15, responses)
    steps = int(count.sum())
    offsets = F.pad(count.cumsum(0), (1, 0))
    response = torch.repeat_interleave(torch.arange(responses, device=at.device), count)

    compiled = _compiled(plain.scores)
    names = ("margin", "prob", "log_prob", "min", "log_product", "mean")
    six = f"eager, {len(names)} of {len(ladderkern.prm.StepScores._fields)}"
    peers = {
        six: _scored(at, (steps, 2), lambda logits: plain.scores(logits, response, count)),
        COMPILED: _scored(at, (steps, 2), lambda logits: compiled(logits, response, count)),
    }
    return Case(
        f"PRM scores, {steps} steps of {responses} responses, {_name(at.dtype)}",
        _scored(at, (steps, 2), lambda logits: ladderkern.prm.score_steps(logits, offsets)),
        peers,
        peers[six],
        work.prm_forward(steps, responses, 2, at.dtype).bytes,
        held=steps * 40,
        calls=20,
        same=lambda result: [getattr(result, name) for name in names],
    )


def prm_padded(at: At) -> Case:
    """Step scores out of padded logits, beside a model card's loop."""
    responses, steps, width = at.pick(check=(3, 4, 5), quick=(64, 12, 70), cpu=(256, 12, 70), cuda=(512, 12, 70))
    mask = torch.zeros(responses, steps * width, dtype=torch.bool, device=at.device)
    mask[:, width - 1 :: width] = True

    shape = (responses, steps * width, 2)
    return Case(
        f"PRM scores of padded logits {list(shape)}, {_name(at.dtype)}",
        _scored(at, shape, lambda logits: ladderkern.prm.score_steps(*ladderkern.prm.gather_steps(logits, mask))),
        {"model card's loop": _scored(at, shape, lambda logits: plain.card_lists(logits, mask))},
        _scored(at, shape, lambda logits: [logits[mask].to(plain.wide(logits.dtype)).softmax(-1)[:, 1]]),
        0,
        held=responses * steps * width * 20,
        same=lambda result: [result.prob],
    )


# ----------------------------------------------------------------------------------------------------------------------- norms


def norm(at: At) -> Case:
    """An addition and an RMS norm, forward and backward."""
    rows, hidden = at.pick(check=(5, 96), quick=(512, 2048), cpu=(2048, 4096), cuda=(8192, 4096))

    def forward_and_backward(add_norm: Callable[..., Any]) -> Builder:
        def build() -> Call:
            weight = 1 + at.numbers(hidden, seed=4) / 8
            inputs = [*(at.numbers(rows, hidden, seed=seed) for seed in (0, 1)), weight]
            for each in inputs:
                each.requires_grad_()
            grads = [at.numbers(rows, hidden, seed=seed) for seed in (2, 3)]

            def both() -> list[Tensor]:
                outputs = add_norm(*inputs)
                return [*(each.detach() for each in outputs), *torch.autograd.grad(outputs, inputs, grads)]

            return Call(both)

        return build

    passes = (work.norm_forward(rows, hidden, at.dtype, at.dtype), work.norm_backward(rows, hidden, at.dtype, at.dtype))
    eager = forward_and_backward(plain.add_llama_norm)
    return Case(
        f"add_rms_norm, [{rows}, {hidden}] {_name(at.dtype)}",
        forward_and_backward(lambda x, update, weight: ladderkern.add_rms_norm(x, update, weight, plain.EPS)),
        {
            "eager": eager,
            "x + update, F.rms_norm": forward_and_backward(plain.add_torch_norm),
            COMPILED: forward_and_backward(_compiled(plain.add_llama_norm)),
        },
        eager,
        sum(each.bytes for each in passes),
        held=rows * hidden * 8 * at.dtype.itemsize,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CASES: dict[str, Callable[[At], Case]] = {
    "spam": spam,
    "spam-rows": spam_rows,
    "spam-small": spam_small,
    "discrepancy": discrepancy,
    "joint": joint,
    "prm": prm,
    "prm-padded": prm_padded,
    "norm": norm,
}
