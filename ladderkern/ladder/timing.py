"""The time of one run: a roofline for compute, and who waits for which all-reduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .hardware import PARALLEL_LAYER_SAVING, Device, Link
from .shapes import ModelShape

ARCHITECTURES = ("standard", "ladder", "ladder, perfect overlap", "hybrid", "parallel", "no communication")
ELEMENT_BYTES = 2
ATTENTION_OVERHEAD = 0.6  # of a layer's overhead: attention has more and smaller kernels than the MLP


class Phase(NamedTuple):
    """The prompt, or one step that gives every sequence a token: compute of one rank, in seconds."""

    attention: float  # of one layer
    mlp: float  # of one layer
    head: float
    message: int  # bytes of one all-reduce
    steps: int

    def slowed(self, factor: float) -> Phase:
        """The same with all compute times ``factor``."""
        return self._replace(attention=self.attention * factor, mlp=self.mlp * factor, head=self.head * factor)


class Time(NamedTuple):
    """Seconds of a run, and those in which ranks did nothing but wait for all-reduces."""

    total: float
    step: float  # of one token step after the prompt
    waiting: float


def phases(shape: ModelShape, device: Device, tp: int, batch: int, prompt: int, new_tokens: int) -> tuple[Phase, Phase]:
    """The prompt and the token steps. The head is not sharded, and sees a prompt's last token only."""
    cache = 2 * (prompt + new_tokens / 2) * batch * max(shape.kv_heads // tp, 1) * shape.head_dim * ELEMENT_BYTES
    bandwidth = device.vector_bandwidth if batch == 1 else device.matrix_bandwidth

    def of_weights(weights: float, tokens: int) -> float:
        return max(weights * ELEMENT_BYTES / bandwidth, 2 * weights * tokens / device.matmul_rate)

    def phase(tokens: int, moved: float, scores: float, steps: int) -> Phase:
        overhead = device.layer_overhead
        attention = of_weights(shape.attention_weights / tp, tokens) + moved / bandwidth + scores / device.matmul_rate
        mlp = of_weights(shape.mlp_weights / tp, tokens)
        return Phase(
            attention + ATTENTION_OVERHEAD * overhead,
            mlp + (1 - ATTENTION_OVERHEAD) * overhead,
            of_weights(shape.head_weights, batch),
            tokens * shape.hidden * ELEMENT_BYTES,
            steps,
        )

    scores = 2 * batch * prompt**2 * shape.heads * shape.head_dim / tp  # both products, the masked half left out
    return (
        phase(batch * prompt, 0.0, scores, 1),
        phase(batch, cache * device.cache_traffic, 0.0, new_tokens),
    )


def elapsed(compute: Sequence[float], all_reduce: float, delays: Sequence[int]) -> float:
    """Seconds until the last of a stack's all-reduces is done, if whatever can overlap does so at no cost.

    Module i starts when the module before it has computed and the all-reduces that its input holds are done: those of all
    modules before it but the last ``delays[i]``. All-reduces run one after another. Source: the recurrence of Zhang et al.
    2025 (arXiv 2501.06589).
    """
    computed, done = 0.0, [0.0]
    for seconds, delay in zip(compute, delays, strict=True):
        computed = max(computed, done[max(len(done) - 1 - delay, 0)]) + seconds
        done.append(max(computed, done[-1]) + all_reduce)
    return done[-1]


def without_communication(shape: ModelShape, each: Sequence[Phase]) -> Time:
    """A standard model if all-reduces took no time."""
    seconds = [shape.layers * (phase.attention + phase.mlp) + phase.head for phase in each]
    return _total(each, seconds, [0.0] * len(seconds))


def sequential(
    shape: ModelShape, each: Sequence[Phase], link: Link, tp: int, batch: int, delays: Sequence[int], *, perfect: bool
) -> Time:
    """Attention and MLP one after the other, each with its delay: a standard model, a ladder, a hybrid.

    ``perfect``: as :func:`elapsed`. Otherwise the link's fitted share of the delayed modules' all-reduces is hidden, and no
    more than its fitted part of what a perfect overlap would hide.
    """
    late = sum(delay > 0 for delay in delays)
    seconds, waiting = [], []
    for phase in each:
        compute = [phase.attention, phase.mlp] * shape.layers
        all_reduce = link.seconds(phase.message, tp)
        possible = sum(compute) + len(delays) * all_reduce - elapsed(compute, all_reduce, delays)
        fitted = min(link.hidden_share(batch) * late * all_reduce, link.hidden_of_possible * possible)
        waiting.append(len(delays) * all_reduce - (possible if perfect else fitted))
        seconds.append(sum(compute) + phase.head + waiting[-1])
    return _total(each, seconds, waiting)


def parallel(shape: ModelShape, each: Sequence[Phase], link: Link, tp: int) -> Time:
    """Attention and MLP of a layer side by side: one norm, one all-reduce a layer, nothing hidden."""
    seconds, waiting = [], []
    for phase in each:
        waiting.append(shape.layers * link.seconds(phase.message, tp))
        layer = max(phase.attention + phase.mlp - PARALLEL_LAYER_SAVING, max(phase.attention, phase.mlp))
        seconds.append(shape.layers * layer + phase.head + waiting[-1])
    return _total(each, seconds, waiting)


def _total(each: Sequence[Phase], seconds: Sequence[float], waiting: Sequence[float]) -> Time:
    total, waited = (sum(phase.steps * s for phase, s in zip(each, values, strict=True)) for values in (seconds, waiting))
    return Time(total, seconds[-1], waited)


class Run(NamedTuple):
    """What is predicted: prompts of ``prompt`` tokens, then ``new_tokens`` steps of ``batch`` sequences on ``tp`` ranks."""

    shape: ModelShape
    device: Device
    link: Link
    tp: int
    batch: int
    prompt: int
    new_tokens: int
    ladder_layers: tuple[int, ...]  # of the hybrid
    phases: tuple[Phase, ...]

    @property
    def all_reduce(self) -> float:
        """Seconds of an all-reduce of one token step."""
        return self.link.seconds(self.phases[-1].message, self.tp)

    def time(self, architecture: str) -> Time:
        """Of one of ARCHITECTURES."""
        if architecture == "parallel":
            return parallel(self.shape, self.phases, self.link, self.tp)
        if architecture == "no communication":
            return without_communication(self.shape, self.phases)
        ladder = range(self.shape.layers) if architecture.startswith("ladder") else ()
        layers = set(self.ladder_layers if architecture == "hybrid" else ladder)
        delays = [int(layer in layers) for layer in range(self.shape.layers) for _ in range(2)]
        perfect = architecture.endswith("perfect overlap")
        return sequential(self.shape, self.phases, self.link, self.tp, self.batch, delays, perfect=perfect)

    def speed_up(self, architecture: str) -> float:
        """Over the standard model."""
        return self.time("standard").total / self.time(architecture).total
