"""A ``parallelize`` function as torchtitan calls it, for a ladder Llama: wiring, tensor parallelism, then FSDP2.

    pip install 'ladderkern[examples]' && torchrun --nproc-per-node 4 examples/titan_parallelize.py

torchtitan need not be installed: ``ParallelDims`` and ``JobConfig`` stand for its classes of those names, with the fields that
are read here. In torchtitan the function goes into the model's TrainSpec. Four gloo processes, 2 (FSDP) x 2 (tensor parallel);
prints the losses beside those of the same model on one process.
"""

import warnings
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from ladderkern import SPAM, ladder

STEPS, BATCH, LENGTH = 20, 8, 32


@dataclass
class ParallelDims:
    dp_shard: int
    tp: int
    world_mesh: DeviceMesh
    fsdp_enabled = property(lambda self: self.dp_shard > 1)
    tp_enabled = property(lambda self: self.tp > 1)


@dataclass
class Model:
    ladder_layers: int | list[int] | None = None  # None: all of them


@dataclass
class JobConfig:
    model: Model = field(default_factory=Model)


def parallelize_ladder(model: nn.Module, parallel_dims: ParallelDims, job_config: JobConfig) -> nn.Module:
    ladder.to_ladder(model, job_config.model.ladder_layers)
    if parallel_dims.tp_enabled:
        ladder.tensor_parallel(model, parallel_dims.world_mesh["tp"])
    if parallel_dims.fsdp_enabled:
        mesh = parallel_dims.world_mesh["dp_shard"]
        for layer in model.model.layers:
            # The two branches, not the layer: the ladder's stack calls them one by one, and never the layer.
            fully_shard(layer.self_attn, mesh=mesh)
            fully_shard(layer.mlp, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def new_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    ))  # fmt: skip


def train_step(model, optimizer, tokens):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach().clone()


def main():
    torch.set_num_threads(1)  # the ranks share the cores
    warnings.filterwarnings("ignore", ".*must be retrained")  # they are about to be trained
    dist.init_process_group("gloo")
    world_mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_shard", "tp"))
    model = parallelize_ladder(new_model(), ParallelDims(2, 2, world_mesh), JobConfig())
    alone = ladder.to_ladder(new_model())
    optimizers = [SPAM(m.parameters(), lr=3e-3) for m in (model, alone)]
    data = world_mesh["dp_shard"]
    for step in range(STEPS):
        start = torch.randint(64, (BATCH, 1), generator=torch.Generator().manual_seed(step))
        tokens = (start + 7 * torch.arange(LENGTH)) % 64  # to be learnt: every token is the one before plus 7
        loss = train_step(model, optimizers[0], tokens.chunk(2)[data.get_local_rank()])
        dist.all_reduce(loss, group=data.get_group())
        expected = train_step(alone, optimizers[1], tokens)
        if dist.get_rank() == 0 and step % 5 == 4:
            print(f"step {step}: loss {loss / 2:.4f}, on one process {expected:.4f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
