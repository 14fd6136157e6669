"""Tensor-parallel models read shards of transformers' files, write such files, and go through torch.distributed.checkpoint."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from twins import MODES, OPTIONS, STEPS, full, mesh_of, same_bits

pytest.importorskip("transformers", minversion="5.0", reason="the tests of transformers' models need it")

import safetensors
from llamas import MODELS, batch, parallel_model, whole_model

import ladderkern
from ladderkern import ladder
from ladderkern.testing.llamas import tiny_llama


def written(folder: Path, name: str, layers: str = "hybrid", **options) -> None:
    whole_model(name, layers).save_pretrained(folder, **options)


def same_model(model, whole) -> None:
    assert list(model.state_dict()) == list(whole.state_dict())
    for (key, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert same_bits(p, q), key


def watched_files(sizes: list[int]):
    """safetensors.safe_open, noting how many numbers are taken from the files; whole tensors cannot be."""

    class Slice:
        def __init__(self, part):
            self.part, self.get_shape = part, part.get_shape

        def __getitem__(self, box):
            sizes.append(self.part[box].numel())
            return self.part[box]

    class File:
        def __init__(self, file):
            self.file, self.keys = file, file.keys

        def get_slice(self, key):
            return Slice(self.file.get_slice(key))

    original = safetensors.safe_open

    @contextmanager
    def opened(*args, **kwargs):
        with original(*args, **kwargs) as file:
            yield File(file)

    return opened


def read(folder: str, name: str) -> None:
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors, "safe_open", watched_files(sizes))
        model = ladder.from_pretrained(folder, mesh_of(dist.get_world_size()))
    assert sum(sizes) == sum(p.to_local().numel() for p in model.parameters())
    assert max(sizes) < max(p.numel() for p in model.parameters())
    whole = whole_model(name, "hybrid")
    same_model(model, whole)
    assert not model.training
    assert model.config.ladder_layers == [2, 3]
    inputs = batch(model)
    torch.testing.assert_close(model(**inputs).logits, parallel_model(name, "hybrid")(**inputs).logits, rtol=0, atol=0)
    assert model.generation_config.bos_token_id == whole.generation_config.bos_token_id == 1


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_each_rank_reads_its_own_shards_alone(on_ranks, tmp_path, world_size, name):
    written(tmp_path, name)
    on_ranks(world_size, read, folder=str(tmp_path), name=name)


def test_weights_may_lie_in_several_files(on_ranks, tmp_path):
    written(tmp_path, "qwen2", max_shard_size="20KB")
    assert len(set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values())) > 3
    on_ranks(2, read, folder=str(tmp_path), name="qwen2")


def read_in_bfloat16(folder: str) -> None:
    model = ladder.from_pretrained(folder, mesh_of(2), dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.equal(full(model.lm_head.weight), tiny_llama().lm_head.weight.bfloat16())
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_another_dtype_is_cast_to(on_ranks, tmp_path):
    written(tmp_path, "llama")
    on_ranks(2, read_in_bfloat16, folder=str(tmp_path))


def refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"must hold all weights, got none for lm_head.weight of 1 missing$"):
        ladder.from_pretrained(f"{folder}/missing", mesh_of(2))
    with pytest.raises(
        ValueError, match=r"lm_head.weight must have the shape \(61, 32\), got \(60, 32\) in .*model.safetensors"
    ):
        ladder.from_pretrained(f"{folder}/shorter", mesh_of(2))
    with pytest.raises(OSError, match="nowhere"):
        ladder.from_pretrained(f"{folder}/nowhere", mesh_of(2))


def test_incomplete_files_are_refused(on_ranks, tmp_path):
    model = tiny_llama()
    weights = model.state_dict()
    head = weights.pop("lm_head.weight")
    model.save_pretrained(tmp_path / "missing", state_dict=dict(weights))
    model.save_pretrained(tmp_path / "shorter", state_dict={**weights, "lm_head.weight": head[:60].clone()})
    on_ranks(2, refused, folder=str(tmp_path))


def write(folder: str, name: str) -> None:
    parallel_model(name, "hybrid").save_pretrained(folder, max_shard_size="40KB")


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_saving_gives_the_files_of_the_whole_model_back(on_ranks, tmp_path, world_size, name):
    on_ranks(world_size, write, folder=str(tmp_path / "parallel"), name=name)
    written(tmp_path / "whole", name, max_shard_size="40KB")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "parallel").iterdir()) == files
    for file in files:
        assert (tmp_path / "parallel" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    same_model(ladder.from_pretrained(tmp_path / "parallel"), whole_model(name, "hybrid"))


def write_two_by_two(folder: str) -> None:
    mesh = mesh_of(2, 2)
    model = ladder.tensor_parallel(whole_model("tied", vocab_size=64), mesh["tp"])
    for layer in model.model.layers:
        fully_shard([layer.self_attn, layer.mlp], mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    ladder.save_pretrained(model, folder)


def test_saving_two_by_two_ranks(on_ranks, tmp_path):
    on_ranks(4, write_two_by_two, folder=str(tmp_path))
    same_model(ladder.from_pretrained(tmp_path), whole_model("tied", vocab_size=64))


def test_a_whole_model_is_saved_as_ever(tmp_path):
    ladder.save_pretrained(whole_model(), tmp_path)
    same_model(ladder.from_pretrained(tmp_path), whole_model())


# Shards of 2 and of 4 ranks are multiples of 16, in the rows and in the columns that are cut.
WIDE = {"hidden_size": 128, "intermediate_size": 128, "dtype": torch.float32}


def trained(model, optimizer, first: int, last: int):
    """Steps whose gradients do not depend on the number of ranks: their sums over ranks would be rounded otherwise."""
    for step in range(first, last):
        for i, p in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + i)
            grad = torch.randn(p.shape, generator=generator)
            p.grad = torch.distributed.tensor.distribute_tensor(grad, p.device_mesh, p.placements, src_data_rank=None)
        torch.rand(1 + torch.initial_seed() % 5)  # each rank's RNG goes its own way
        optimizer.step()
        optimizer.zero_grad()


def save_halfway(folder: str, mode: str) -> None:
    model = parallel_model(**WIDE)
    optimizer = ladderkern.SPAM(model.parameters(), **OPTIONS, **MODES[mode])
    trained(model, optimizer, 0, 6)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def resume(folder: str, mode: str) -> None:
    model, expected = parallel_model(**WIDE), parallel_model(**WIDE)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    optimizers = [ladderkern.SPAM(m.parameters(), **OPTIONS, **MODES[mode]) for m in (model, expected)]
    weights, moments = get_state_dict(model, optimizers[0])
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizers[0], model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    trained(model, optimizers[0], 6, STEPS)
    trained(expected, optimizers[1], 0, STEPS)
    same_model(model, expected)


@pytest.mark.parametrize("world_sizes", [(2, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("mode", ["dense", "element", "row"])
def test_spam_resumes_on_another_number_of_ranks(on_ranks, tmp_path, world_sizes, mode):
    before, after = world_sizes
    on_ranks(before, save_halfway, folder=str(tmp_path), mode=mode)
    on_ranks(after, resume, folder=str(tmp_path), mode=mode)
