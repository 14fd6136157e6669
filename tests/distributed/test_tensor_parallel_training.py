"""Tensor-parallel models train: with SPAM, whose masks sharding does not change, and with FSDP2 over the other ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from twins import DRAWS, OPTIONS, Twins, full, mesh_of

pytest.importorskip("transformers", minversion="5.0", reason="the tests of transformers' models need it")

from llamas import LAYERS, batch, parallel_model, whole_model

import ladderkern
from ladderkern import ladder

# Shards of 2 and of 4 ranks are multiples of 16, in the rows and in the columns that are cut.
WIDE = {"hidden_size": 128, "intermediate_size": 128}


@pytest.mark.ranks(2, 4)
@pytest.mark.parametrize(("name", "mode"), [*(("llama", mode) for mode in DRAWS), ("tied", "element")])
def test_spam_steps_the_shards_as_it_steps_the_whole(name, mode):
    model = parallel_model(name, "hybrid", **WIDE).train()
    twins = Twins(model.parameters(), **DRAWS[mode])
    for step in range(7):  # the moments restart at the fifth
        model(**batch(model, seed=step)).loss.backward()
        twins.copy_gradients()
        twins.step()
        model.zero_grad()
    twins.check()


def losses_of(model, optimizer, part=slice(None)):
    """The loss of each step, of the rows ``part`` of one batch; SPAM's moments restart at the fifth."""
    losses = []
    inputs = batch(model)
    counted = (inputs["labels"][:, 1:] != -100).sum()
    replicas = len(inputs["labels"]) // len(inputs["labels"][part])
    inputs = {name: x[part] for name, x in inputs.items()}
    for _ in range(7):
        loss = model(**inputs, num_items_in_batch=counted / replicas).loss  # FSDP takes the mean over replicas
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach() / replicas)
    return torch.stack(losses)


def alone(model):
    """The model on this rank alone, in float64 throughout: transformers' own norm and loss round to float32."""
    return ladder.tensor_parallel(model, mesh_of(dist.get_world_size(), 1)["tp"])


@pytest.mark.ranks(4)
@pytest.mark.parametrize(
    ("name", "layers"), [("llama", "ladder"), ("qwen2", "hybrid"), ("tied", "standard"), ("mistral", "ladder")]
)
def test_two_by_two_ranks_train_as_one_process_does(name, layers):
    mesh = mesh_of(2, 2)
    model, whole = whole_model(name, layers, vocab_size=64).train(), whole_model(name, layers, vocab_size=64).train()
    ladder.tensor_parallel(model, mesh["tp"])
    alone(whole)
    for layer in model.model.layers:
        fully_shard(layer.self_attn, mesh=mesh["dp"])
        fully_shard(layer.mlp, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    assert all(isinstance(p, DTensor) and p.device_mesh.ndim == 2 for p in model.parameters())
    optimizers = [ladderkern.SPAM(m.parameters(), **{**OPTIONS, "lr": 0.01}) for m in (model, whole)]
    row = mesh["dp"].get_local_rank()
    losses = losses_of(model, optimizers[0], slice(row, row + 1))
    dist.all_reduce(losses, group=mesh["dp"].get_group())
    expected = losses_of(whole, optimizers[1])
    torch.testing.assert_close(losses, expected)
    assert losses[-1] < losses[0]
    for (key, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(p), full(q), msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.ranks(2)
@pytest.mark.parametrize("layers", LAYERS)
def test_fsdp_alone_trains_as_one_process_does(layers):
    model, whole = whole_model("llama", layers).train(), whole_model("llama", layers).train()
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:  # as accelerate does
            fully_shard(module, mesh=mesh_of(2))
    fully_shard(model, mesh=mesh_of(2))
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) == 9
    for m in (model, whole):
        m(**batch(whole)).loss.backward()
    for (key, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(full(p.grad), q.grad, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.ranks(2)
def test_fully_sharded_layers_say_what_to_shard_instead():
    model = whole_model()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh_of(2))
    fully_shard(model, mesh=mesh_of(2))
    with pytest.raises(ValueError, match="fully_shard on each layer's self_attn and mlp"):
        model(**batch(model))
