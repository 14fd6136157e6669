"""The demo's experiment: one small language model, one plan of data and gradient spikes, several optimizers or wirings.

Everything a run meets is fixed by :class:`Setting` before it starts: first weights, order of the text, the steps that spike
and the coordinates that spike there. :class:`Run` records hashes of what was really used.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..ladder import to_ladder
from ..spam import SPAM

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    SPAM's intervals are the published 500 / 150 / 20, scaled to the short run. The spikes have the size that the paper
    reports (up to 1000 times); how many coordinates they hit is our choice, made so that they cost AdamW something: one
    coordinate in a hundred at three steps in a hundred hardly does.
    """

    seed: int = 0
    steps: int = 300
    batch: int = 8
    length: int = 64
    hidden: int = 192
    layers: int = 2
    ladder_layers: int | None = None  # the last so many of them are ladder layers; None: all
    lr_warmup: int = 30
    held_out_share: float = 0.06
    spike_probability: float = 0.05
    spike_share: float = 0.1
    spike_factor: float = 1000.0
    spike_start: int = 30
    reset_interval: int = 50
    warmup_steps: int = 15
    unclipped_steps: int = 2

    def describe(self) -> str:
        """Everything but the seed, as ``name=value`` pairs: what a kept result must agree with."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items() if name != "seed")

    def resets(self) -> list[int]:
        """The steps (counted from 1) at which SPAM restarts its moments."""
        return list(range(self.reset_interval, self.steps + 1, self.reset_interval))


FULL = Setting()
QUICK = Setting(steps=80, lr_warmup=10, spike_start=10, reset_interval=30, warmup_steps=9, unclipped_steps=1)


class Contender(NamedTuple):
    """An optimizer of the demo: how to build it, and the global norm to clip gradients to, if any."""

    make: Callable[[list[Tensor], float, Setting], Optimizer]
    clip_norm: float | None = None


def _adamw(params: list[Tensor], lr: float, setting: Setting) -> Optimizer:
    return torch.optim.AdamW(params, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)


def _spam(density: float = 1.0, mask_unit: str = "element") -> Callable[[list[Tensor], float, Setting], Optimizer]:
    def make(params: list[Tensor], lr: float, setting: Setting) -> Optimizer:
        return SPAM(
            params,
            lr=lr,
            betas=BETAS,
            reset_interval=setting.reset_interval,
            warmup_steps=setting.warmup_steps,
            unclipped_steps=setting.unclipped_steps,
            density=density,
            mask_unit=mask_unit,
            seed=setting.seed,
        )

    return make


CONTENDERS = {
    "AdamW": Contender(_adamw),
    "AdamW, clip norm 1": Contender(_adamw, clip_norm=1.0),
    "SPAM": Contender(_spam()),
    "SPAM, 1/4 by element": Contender(_spam(0.25)),
    "SPAM, 1/4 by row": Contender(_spam(0.25, "row")),
}


class Text(NamedTuple):
    """English text as bytes: what is trained on and the tail that is held out, both uint8, and the whole size."""

    train: Tensor
    held_out: Tensor
    num_bytes: int


def read_text(held_out_share: float) -> Text:
    """The help texts of this Python (``pydoc_data.topics``), each paragraph once, so that none is on both sides."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(
        paragraph.strip("\n") for _, text in sorted(topics.items()) for paragraph in re.split(r"\n{2,}", text)
    )
    raw = torch.frombuffer(bytearray("\n\n".join(paragraphs).encode()), dtype=torch.uint8)
    split = int(len(raw) * (1 - held_out_share))
    return Text(raw[:split], raw[split:], len(raw))


@dataclass(frozen=True)
class Plan:
    """Data order and spikes, drawn once for all runs."""

    setting: Setting
    text: Text
    starts: Tensor  # where the windows of each step begin  [steps, batch]
    spiking: list[int]  # steps (counted from 1) whose gradients spike

    @staticmethod
    def draw(setting: Setting) -> Plan:
        """The plan that ``setting.seed`` stands for."""
        generator = torch.Generator().manual_seed(setting.seed)
        text = read_text(setting.held_out_share)
        shape = (setting.steps, setting.batch)
        starts = torch.randint(len(text.train) - setting.length, shape, generator=generator)
        draws = torch.rand(setting.steps, generator=generator).tolist()
        spiking = [
            step for step, draw in enumerate(draws, start=1) if step > setting.spike_start and draw < setting.spike_probability
        ]
        return Plan(setting, text, starts, spiking)

    def windows(self, step: int) -> Tensor:
        """The token ids of a step, counted from 1.  [batch, length] int64"""
        offsets = self.starts[step - 1, :, None] + torch.arange(self.setting.length)
        return self.text.train[offsets].long()


@dataclass
class Run:
    """What came out of training one model."""

    name: str
    lr: float
    losses: list[float] = field(default_factory=list)  # nats a byte, one a step
    held_out_after: dict[int, float] = field(default_factory=dict)  # nats a byte, after some steps and the last
    optimizer_ms: float = math.nan  # median of a step, clipping included
    state_bytes: int = 0
    data_hash: str = ""
    spike_hash: str = ""

    @property
    def held_out(self) -> float:
        """The held-out loss at the end, in nats a byte."""
        return self.held_out_after[max(self.held_out_after)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A block, or with ``@`` a function, that runs on one thread.

    Steps this small gain little from more, and crawl with them where cores are shared.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build_model(setting: Setting) -> Any:
    """A standard Llama over bytes, its first weights fixed by the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(setting.seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=setting.hidden,
        intermediate_size=setting.hidden * 8 // 3,
        num_hidden_layers=setting.layers,
        num_attention_heads=max(1, setting.hidden // 32),
        max_position_embeddings=setting.length,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def build_wired(setting: Setting) -> Any:
    """The Llama of :func:`build_model`, with the ladder layers that the setting asks for."""
    model = build_model(setting)
    if setting.ladder_layers == 0:
        return model  # transformers' own loop over the layers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*must be retrained")  # it is about to be trained
        return to_ladder(model, setting.ladder_layers)


def lr_factor(step: int, setting: Setting) -> float:
    """The schedule of every run, for a step counted from 1: linear warm-up, then a cosine to 10 %."""
    if step <= setting.lr_warmup:
        return step / setting.lr_warmup
    done = (step - setting.lr_warmup) / max(1, setting.steps - setting.lr_warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def inject_spikes(params: list[Tensor], setting: Setting, generator: torch.Generator) -> list[Tensor]:
    """Multiply ``spike_share`` of the coordinates of each gradient by ``spike_factor``; returns the coordinates."""
    coordinates = []
    for p in params:
        grad = p.grad
        assert grad is not None
        count = math.ceil(grad.numel() * setting.spike_share)
        chosen = torch.randint(grad.numel(), (count,), generator=generator)
        grad.view(-1)[chosen] *= setting.spike_factor
        coordinates.append(chosen)
    return coordinates


@torch.no_grad()
def held_out_loss(model: Any, text: Text, setting: Setting) -> float:
    """Mean loss over the held-out text, in nats a byte."""
    count = len(text.held_out) // setting.length
    windows = text.held_out[: count * setting.length].view(count, setting.length).long()
    sums = [model(input_ids=part, labels=part).loss.item() * len(part) for part in windows.split(4 * setting.batch)]
    return sum(sums) / count


def train(
    name: str,
    lr: float,
    plan: Plan,
    *,
    spikes: bool = True,
    evaluate_after: Collection[int] = (),
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps,
) -> Run:
    """Train a fresh model with the contender ``name`` at learning rate ``lr`` through the data and spikes of ``plan``.

    Args:
        spikes: False leaves the gradients as they are.
        evaluate_after: after which steps the held-out loss is taken; after the last it always is.
        progress: wraps the steps, for a progress bar.
    """
    setting, contender, run = plan.setting, CONTENDERS[name], Run(name, lr)
    model = build_wired(setting)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = contender.make(params, lr, setting)
    generator = torch.Generator().manual_seed(setting.seed + 1)
    data_hash, spike_hash, times = hashlib.sha256(), hashlib.sha256(), []
    for step in progress(range(1, setting.steps + 1)):
        windows = plan.windows(step)
        data_hash.update(windows.numpy().tobytes())
        loss = model(input_ids=windows, labels=windows).loss
        loss.backward()
        run.losses.append(loss.item())
        if spikes and step in plan.spiking:
            for coordinates in inject_spikes(params, setting, generator):
                spike_hash.update(coordinates.numpy().tobytes())
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step, setting)
        start = time.perf_counter()
        if contender.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, contender.clip_norm)
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
        optimizer.zero_grad()
        if step in evaluate_after or step == setting.steps:
            run.held_out_after[step] = held_out_loss(model, plan.text, setting)
    run.optimizer_ms = statistics.median(times)
    run.state_bytes = sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())
    run.data_hash, run.spike_hash = data_hash.hexdigest(), spike_hash.hexdigest()
    return run
