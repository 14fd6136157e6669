"""Tiny transformers models, and the ladder equation written plainly over their modules: the law of every wired model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn


def tiny_llama(kind: str = "llama", *, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    """A random causal language model of transformers with 4 layers, each of whose weights matters, the same at each call.

    Args:
        kind: "llama", "qwen2" (biases; the last two layers see 4 tokens) or "mistral" (all layers see 4 tokens).
        dtype: of the parameters.
        config: what shall differ: 4 heads, 2 of keys and values, 61 tokens, hidden size 32.
    """
    import transformers

    own = {"qwen2": {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 4}, "mistral": {"sliding_window": 4}}
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    tokens = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "max_position_embeddings": 64}
    name = {"llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral"}[kind]
    settings = getattr(transformers, f"{name}Config")(**{**shape, **tokens, **own.get(kind, {}), **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(settings)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.1)
    return model.to(dtype).eval()


def ladder_equation(model: Any, input_ids: Tensor, ladder_layers: Collection[int], **inputs: Any) -> list[Tensor]:
    """The streams x_0 to x_M of ``x_i = x_{i-1} + h_i(x_{i-1-d_i})`` of an unwired model's modules.

    Args:
        model: as transformers made it. Its own forward is run for the masks and positions of each layer.
        input_ids: [batch, length] int64
        ladder_layers: the layers whose two delays are 1.
        inputs: what else the model takes, as attention_mask.
    """
    calls: list[dict[str, Any]] = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
        for layer in model.model.layers
    ]
    model(input_ids, use_cache=False, **inputs)
    for hook in hooks:
        hook.remove()
    streams = [model.model.embed_tokens(input_ids)]
    for i, (layer, call) in enumerate(zip(model.model.layers, calls, strict=True)):
        delay = int(i in ladder_layers)
        normed = plain_norm(streams[max(len(streams) - 1 - delay, 0)], layer.input_layernorm)
        streams.append(streams[-1] + layer.self_attn(**{**call, "hidden_states": normed})[0])
        normed = plain_norm(streams[max(len(streams) - 1 - delay, 0)], layer.post_attention_layernorm)
        streams.append(streams[-1] + layer.mlp(normed))
    return streams


def plain_norm(x: Tensor, norm: Any) -> Tensor:
    """``norm`` in the dtype of x: transformers' own norms round float64 to float32."""
    return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))
