"""What the tests of tensor-parallel models share."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from twins import full, mesh_of

from ladderkern import ladder
from ladderkern.testing.llamas import ladder_equation, plain_norm, tiny_llama

LAYERS = {"ladder": [0, 1, 2, 3], "hybrid": [2, 3], "standard": []}
MODELS = {
    "llama": {},  # 4 ranks share 2 heads of keys and values, 61 tokens are no multiple of anything
    "tied": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "qwen2": {"kind": "qwen2"},
    "mistral": {"kind": "mistral", "num_key_value_heads": 1, "vocab_size": 5},  # 4 ranks: 2, 2, 1 and 0 tokens
}


def whole_model(name: str = "llama", layers: str = "ladder", **options):
    """The model on one rank, wired."""
    with warnings.catch_warnings(action="ignore"):
        return ladder.to_ladder(tiny_llama(**{**MODELS[name], **options}), LAYERS[layers])


def parallel_model(name: str = "llama", layers: str = "ladder", **options):
    """The same model over all ranks."""
    return ladder.tensor_parallel(whole_model(name, layers, **options), mesh_of(dist.get_world_size()))


def batch(model, length: int = 12, seed: int = 5) -> dict[str, Tensor]:
    """Two texts, the first padded on the left by 3."""
    ids = torch.randint(1, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    ids[0, :3] = 0
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def plain_logits(name: str, layers: str, inputs: dict[str, Tensor], **options):
    """(unwired model, its logits with the wiring written plainly)."""
    model = tiny_llama(**{**MODELS[name], **options})
    stream = ladder_equation(model, inputs["input_ids"], LAYERS[layers], attention_mask=inputs["attention_mask"])[-1]
    return model, F.linear(plain_norm(stream, model.model.norm), model.lm_head.weight)


def check_gradients(model, plain) -> None:
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad.placements == p.placements, name
        torch.testing.assert_close(full(p.grad), q.grad, msg=lambda text, name=name: f"{name}: {text}")
