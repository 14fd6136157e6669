"""Checkpoints of ladder models in transformers' layout: loaded with their wiring, whole or by shards."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
import torch.distributed as dist

from .llama import inner_model, to_ladder
from .parallel import tensor_parallel
from .saving import without_weights

if dist.is_available():
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def from_pretrained(path: str | os.PathLike[str], mesh: Any = None, *, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """A causal language model as ``save_pretrained`` left it: with the ladder layers that its config records, if any.

    Args:
        path: a folder, or the name of a repository on the hub.
        mesh: a DeviceMesh of one dimension: the model comes back tensor-parallel over it, and each rank reads its own shards
            of the safetensors files alone; at no time does a rank hold the whole model.
        dtype: of the parameters; by default that of the config.
        options: without a mesh, what transformers' ``from_pretrained`` takes; with one, what its ``AutoConfig`` takes.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: a model that is no Llama, Qwen2 or Mistral. OSError: nothing at path. With a mesh also ValueError: those of
        :func:`tensor_parallel`, and weights that are missing from the files or have another shape.
    """
    from transformers import AutoModelForCausalLM

    if mesh is None:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto" if dtype is None else dtype, **options)
        inner_model(model)
    else:
        model = _read_shards(os.fspath(path), mesh, dtype, options)
    return to_ladder(model) if getattr(model.config, "ladder_layers", None) else model


def _read_shards(path: str, mesh: Any, dtype: torch.dtype | None, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(path, **options)
    model = without_weights(config, dtype or config.dtype or torch.float32)
    tensor_parallel(model, mesh)
    files = _files(path)
    missing = [name for name, _ in model.named_parameters() if name not in files]
    if missing:
        raise ValueError(
            f"the safetensors files of {path} must hold all weights, got none for {missing[0]} of {len(missing)} missing"
        )
    device = torch.device(mesh.device_type, torch.accelerator.current_device_index()) if mesh.device_type != "cpu" else "cpu"
    model.to_empty(device=device)
    inner = inner_model(model)
    with torch.device(device):  # its buffers are in no file
        inner.rotary_emb = type(inner.rotary_emb)(config)
    parameters = dict(model.named_parameters())
    for file in sorted({files[name] for name in parameters}):
        _read({name: p for name, p in parameters.items() if files[name] == file}, file)
    model.name_or_path = path
    if model.can_generate() and os.path.isfile(os.path.join(path, "generation_config.json")):
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


@torch.no_grad()
def _read(parameters: dict[str, Any], file: str) -> None:
    """Fill this rank's shards from the same boxes of the whole tensors in the file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        for name, p in parameters.items():
            part = weights.get_slice(name)
            if tuple(part.get_shape()) != tuple(p.shape):
                raise ValueError(f"{name} must have the shape {tuple(p.shape)}, got {tuple(part.get_shape())} in {file}")
            shape, offset = compute_local_shape_and_global_offset(tuple(p.shape), p.device_mesh, p.placements)
            if 0 not in shape:
                box = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
                p.to_local().copy_(part[box])


def _files(path: str) -> dict[str, str]:
    """The safetensors file of each weight of a checkpoint."""
    from safetensors import safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        file = str(cached_file(path, SAFE_WEIGHTS_NAME))
        with safe_open(file, framework="pt") as weights:
            return dict.fromkeys(weights.keys(), file)
    with open(index, encoding="utf-8") as text:
        found = json.load(text)["weight_map"]
    files = {file: str(cached_file(path, file)) for file in sorted(set(found.values()))}
    return {name: files[file] for name, file in found.items()}
