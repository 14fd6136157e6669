"""Checkpoints of sharded models, written in transformers' layout."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .sharded import DTensor


def save_pretrained(model: Any, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a tensor-parallel model (with or without ``fully_shard``) as transformers writes a whole one. Call it on all ranks.

    Rank 0 gathers the weights in its host memory, one after another, and writes; it returns on all ranks together.

    Args:
        model: the model; one that is not sharded is written by each rank that calls.
        path: the folder.
        options: what transformers' ``save_pretrained`` takes.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any(isinstance(p, DTensor) for p in parameters.values()):
        type(model).save_pretrained(model, path, **options)
        return
    writes = dist.get_rank() == 0
    gathered: dict[int, Tensor] = {}
    for p in model.parameters():
        value: Any = p.detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if writes:
            gathered[id(p)] = value.to("cpu", copy=True)  # of an uneven shard's padding, files would count the bytes
    if writes:
        unsharded = without_weights(model.config, model.dtype)
        unsharded.generation_config = model.generation_config
        unsharded.save_pretrained(path, state_dict={name: gathered[id(p)] for name, p in parameters.items()}, **options)
    dist.barrier()


def without_weights(config: Any, dtype: torch.dtype) -> Any:
    """A causal language model on the meta device: all of it but numbers."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
