"""Transformers' Llama, Qwen2 and Mistral as ladder models: the same modules and weights, wired otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .sharded import replicated
from .stack import LadderStack

MODEL_TYPES = ("llama", "qwen2", "mistral")
_CACHE_NAMES = ("cache", "past_key_values")  # the latter in older releases


def to_ladder(llama: Any, ladder_layers: int | Sequence[int] | None = None) -> Any:
    """Wire layers of a transformers model as ladder layers, in place, and return it.

    Parameters, ``state_dict`` keys, caches and everything outside the loop over the layers stay as they are. Attention and MLP
    of a ladder layer read the residual stream without the output of the module directly before them, so that the all-reduce
    of that output has time until the module is done; in a standard layer they read all of it.

    Args:
        llama: a Llama, Qwen2 or Mistral model of transformers, with or without its head.
        ladder_layers: which layers. None: those of ``llama.config.ladder_layers`` if it has them, else all; an int n: the last
            n; a sequence: those; ``[]``: none. The list is written to ``llama.config.ladder_layers``.

    Raises:
        TypeError: another kind of model, or a ladder_layers of another type.
        ValueError: a layer that the model does not have, or one that is named twice.

    Weights that were trained with the standard wiring give a poor model with this one: without retraining, rewiring the last 16
    layers of Llama-3.1-8B-Instruct took GSM8K from 85 to 11; 3 billion tokens of retraining brought it back to 80. A warning
    says so, unless the list came from the config.

    The stack that runs is ``llama.model.layers.stack``: its ``compile_branches`` compiles the modules and keeps the overlap.
    Forward hooks of decoder layers are called with the streams around them once all layers are done, and cannot change them.
    ``fully_shard`` goes over each ``self_attn`` and ``mlp`` and then the model, instead of each layer; ``_no_split_modules``
    tells accelerate so.

    Source: Zhang et al. 2025 (arXiv 2501.06589), equation and conversion experiment.
    """
    inner = inner_model(llama)
    recorded = getattr(llama.config, "ladder_layers", None) if ladder_layers is None else None
    count = len(inner.layers)
    wanted = next(value for value in (ladder_layers, recorded, count) if value is not None)
    chosen = _chosen(wanted, count)
    if chosen and recorded is None:
        warnings.warn(
            f"{len(chosen)} of {count} layers now read the residual stream one module late: weights that were trained "
            "with the standard wiring must be retrained, until then generation is poor",
            stacklevel=2,
        )
    llama.config.ladder_layers = chosen
    wire(llama, inner.layers.stack.communicator if isinstance(inner.layers, LadderLayers) else None)
    return llama


def inner_model(model: Any) -> Any:
    """The module that holds the layers of a supported model.

    Raises:
        TypeError: any other model.
    """
    inner = getattr(model, "base_model", None)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in MODEL_TYPES or not isinstance(getattr(inner, "layers", None), nn.ModuleList):
        raise TypeError(f"model must be a transformers model of type {', '.join(MODEL_TYPES)}, got {type(model).__name__}")
    return inner


def wire(model: Any, group: Any = None) -> None:
    """Make the model's loop over its layers run a LadderStack with the delays of ``model.config.ladder_layers``."""
    inner = inner_model(model)
    layers = inner.layers
    ladder = _chosen(getattr(model.config, "ladder_layers", None) or [], len(layers))
    branches = [branch(layer, i) for i, layer in enumerate(layers) for branch in (_Attention, _MLP)]
    delays = [int(i // 2 in ladder) for i in range(len(branches))]
    layers.__class__ = LadderLayers
    # Beside the registered modules: the stack reaches the same modules again, which must not show in a state_dict.
    layers.__dict__["stack"] = _Stack(branches, delays, group)
    for owner in (model, inner):  # what accelerate's FSDP shards by default: layers are not called, their two modules are
        owner._no_split_modules = sorted({type(module).__name__ for x in layers for module in (x.self_attn, x.mlp)})


def _chosen(wanted: int | Sequence[int], count: int) -> list[int]:
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if not 0 <= wanted <= count:
            raise ValueError(f"ladder_layers must be at most the {count} layers of the model, got {wanted}")
        return list(range(count - wanted, count))
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise TypeError(f"ladder_layers must be an int or a sequence of ints, got {wanted!r}")
    chosen = list(wanted)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in chosen):
        raise TypeError(f"ladder_layers must be an int or a sequence of ints, got {wanted!r}")
    if len(set(chosen)) != len(chosen) or not all(0 <= i < count for i in chosen):
        raise ValueError(f"ladder_layers must be different numbers of layers from 0 to {count - 1}, got {chosen}")
    return sorted(chosen)


class LadderLayers(nn.ModuleList):
    """The layers of a model, as before, but for the slice over which the model's forward loops.

    That slice takes down what the model passes to each layer (masks differ between layers) and runs the stack when the last
    is called. Whatever else the model does stays its own code. Forward hooks of layers see the stream before and after them.
    """

    stack: _Stack

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        if index.indices(len(self)) != (0, len(self), 1):
            raise ValueError("a wired model runs all of its layers: cut them before to_ladder or tensor_parallel")
        calls: list[dict[str, Any]] = []

        def layer(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            calls.append(kwargs)
            return hidden_states if len(calls) < len(self) else self._run(hidden_states, calls)

        return [layer] * len(self)

    def _run(self, hidden_states: Tensor, calls: list[dict[str, Any]]) -> Tensor:
        if not any(layer._forward_hooks for layer in self):
            return self.stack(hidden_states, calls)
        streams: dict[int, Tensor] = {}
        streams[2 * len(self)] = self.stack(hidden_states, calls, streams)
        for i, (layer, kwargs) in enumerate(zip(self, calls, strict=True)):
            for key, hook in layer._forward_hooks.items():
                named = (kwargs,) if key in layer._forward_hooks_with_kwargs else ()
                hook(layer, (streams[2 * i],), *named, streams[2 * i + 2])
        return streams[2 * len(self)]


class _Stack(LadderStack):
    def formed(self, stream: int, x: Tensor, calls: list[dict[str, Any]], streams: dict[int, Tensor] | None = None) -> None:  # type: ignore[override]
        if streams is not None:
            streams[stream] = x


class _Branch(nn.Module):
    """What a branch of a LadderStack is, for one module of a decoder layer; ``calls``: what each layer was called with."""

    norm_name: str
    eps: float

    def __init__(self, layer: Any, index: int) -> None:
        super().__init__()
        self.layer = layer
        self.index = index
        self.eps = getattr(layer, self.norm_name).variance_epsilon

    @property
    def norm_weight(self) -> Tensor:
        return replicated(getattr(self.layer, self.norm_name).weight)

    def forward(self, normed: Tensor, calls: list[dict[str, Any]], streams: dict[int, Tensor] | None = None) -> Tensor:
        layer, kwargs = self.layer, calls[self.index]
        if not (layer.training and torch.is_grad_enabled() and getattr(layer, "gradient_checkpointing", False)):
            return self.compute(normed, **kwargs)
        # As transformers does: what is computed again in the backward must not write to a cache.
        kwargs = {**kwargs, "use_cache": False, **{name: None for name in _CACHE_NAMES if name in kwargs}}
        return layer._gradient_checkpointing_func(partial(self.compute, **kwargs), normed)

    compute: Callable[..., Tensor]


class _Attention(_Branch):
    norm_name = "input_layernorm"

    def compute(self, normed: Tensor, **kwargs: Any) -> Tensor:
        return self.layer.self_attn(hidden_states=normed, **kwargs)[0]


class _MLP(_Branch):
    norm_name = "post_attention_layernorm"

    def compute(self, normed: Tensor, **kwargs: Any) -> Tensor:
        return self.layer.mlp(normed)
