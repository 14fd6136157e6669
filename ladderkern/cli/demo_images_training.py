"""The images part's experiment: one small model over image tokens, cross-entropy alone against the joint loss."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..discrepancy import DistanceTable, cross_entropy_with_discrepancy
from .demo_frozen_lake import IMAGE_START, TOKENS, Examples, Plan, Setting

LOSSES = ("cross-entropy", "joint")


@dataclass
class Run:
    """What came out of training with one loss; all but the losses is about the held-out boards."""

    name: str
    losses: list[float] = field(default_factory=list)  # as trained on, one a step
    predicted: Tensor = field(default_factory=lambda: torch.empty(0, TOKENS, dtype=torch.int64))  # [E, TOKENS]
    accuracy: float = math.nan  # share of tokens that are right
    accuracy_changed: float = math.nan  # the same over the tokens that the move changes
    exact: float = math.nan  # share of pictures whose every token is right
    wrong_distance: float = math.nan  # mean distance of a wrong token's code to the right one's
    distance: float = math.nan  # the same over all tokens, right ones counting 0
    step_ms: float = math.nan
    data_hash: str = ""


def build_model(setting: Setting, num_codes: int) -> Any:
    """A Llama over moves and image tokens, its first weights fixed by the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(setting.seed)
    config = LlamaConfig(
        vocab_size=IMAGE_START + num_codes,
        hidden_size=setting.hidden,
        intermediate_size=setting.hidden * 8 // 3,
        num_hidden_layers=setting.layers,
        num_attention_heads=max(1, setting.hidden // 32),
        max_position_embeddings=2 * TOKENS + 1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def loss_of(name: str, logits: Tensor, labels: Tensor, table: DistanceTable, weight: float) -> Tensor:
    """The loss called ``name`` of logits [B, TOKENS, V] and labels [B, TOKENS]."""
    if name == "cross-entropy":
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = cross_entropy_with_discrepancy(logits, labels, table, image_start=IMAGE_START, weight=weight)
    assert isinstance(loss, Tensor)
    return loss


def train(name: str, plan: Plan, *, progress: Callable[[Iterable[int]], Iterable[int]] = lambda steps: steps) -> Run:
    """Train a fresh model with the loss ``name`` on the data of ``plan``, and judge it on the held-out boards.

    Args:
        progress: wraps the steps, for a progress bar.
    """
    setting, run = plan.setting, Run(name)
    table = DistanceTable(plan.codebook.embedding())
    model = build_model(setting, table.num_codes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, setting.lr, total_steps=setting.steps, pct_start=0.1, cycle_momentum=False
    )
    data_hash = hashlib.sha256()
    start = time.perf_counter()
    for step in progress(range(setting.steps)):
        batch = plan.train.take(plan.order[step])
        ids = torch.cat((batch.prompt(), batch.after), dim=1)
        data_hash.update(ids.numpy().tobytes())
        logits = model(input_ids=ids[:, :-1], logits_to_keep=TOKENS, use_cache=False).logits
        loss = loss_of(name, logits, batch.after, table, setting.weight)
        loss.backward()
        run.losses.append(loss.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    run.step_ms = 1e3 * (time.perf_counter() - start) / setting.steps
    run.data_hash = data_hash.hexdigest()
    judge(run, generate(model, plan.held_out), plan.held_out, table)
    return run


@torch.no_grad()
def generate(model: Any, examples: Examples) -> Tensor:
    """The picture after each move, token by token from the model's own tokens, the likeliest code each time.  [E, TOKENS]"""
    model.eval()
    prompt = examples.prompt()
    text = list(range(IMAGE_START))  # a move is no part of a picture
    options = {"do_sample": False, "max_new_tokens": TOKENS, "suppress_tokens": text}
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return ids[:, prompt.shape[1] :]


def judge(run: Run, predicted: Tensor, truth: Examples, table: DistanceTable) -> None:
    """Fill in what the predicted tokens are worth."""
    right = predicted == truth.after
    distances = table(truth.after - IMAGE_START).gather(-1, predicted[..., None] - IMAGE_START)[..., 0]
    run.predicted = predicted
    run.accuracy = float(right.float().mean())
    run.accuracy_changed = float(right[truth.before != truth.after].float().mean())
    run.exact = float(right.all(1).float().mean())
    run.wrong_distance = float(distances[~right].mean())
    run.distance = float(distances.mean())
