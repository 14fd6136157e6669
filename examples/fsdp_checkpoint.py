"""SPAM on FSDP2, saved by torch.distributed.checkpoint, and resumed as if nothing had happened.

    pip install ladderkern && torchrun --nproc-per-node 2 examples/fsdp_checkpoint.py

Two gloo processes on any CPU. Prints the losses, and how far the resumed run ends from the uninterrupted one: 0.0. Sparse
moments are DTensors of the parameter's placement, so nothing about the checkpoint is special.
"""

import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ladderkern import SPAM

STEPS, SAVED = 40, 20


def new_run(seed):
    """A sharded model and its optimizer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 1))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The published cycle of 500 / 150 / 20 scaled to a short run: moments restart at the 16th and the 32nd step. 128 rows on 2
    # ranks are 64 each, whole blocks of the 16 rows that a mask is drawn from.
    optimizer = SPAM(
        model.parameters(), lr=1e-2, density=0.25, mask_unit="row", reset_interval=16, warmup_steps=4, unclipped_steps=1
    )
    return model, optimizer


def train(model, optimizer, first, last):
    """The mean loss over the ranks, step by step; each rank has its own samples."""
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step * dist.get_world_size() + dist.get_rank())
        x = torch.randn(64, 32, generator=generator)
        y = (x[:, :16].abs() - x[:, 16:]).sum(1, keepdim=True).sub(12).sign()
        loss = nn.functional.soft_margin_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def save(model, optimizer, folder):
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def load(model, optimizer, folder):
    weights, moments = get_state_dict(model, optimizer)  # where the checkpoint is read into
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


def main():
    torch.set_num_threads(1)  # the ranks share the cores
    dist.init_process_group("gloo")
    shared = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared)
    whole, optimizer = new_run(seed=0)
    losses = train(whole, optimizer, 0, SAVED)
    save(whole, optimizer, shared[0])
    losses += train(whole, optimizer, SAVED, STEPS)
    resumed, optimizer = new_run(seed=1)  # other first weights, all of which the checkpoint replaces
    load(resumed, optimizer, shared[0])
    train(resumed, optimizer, SAVED, STEPS)
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    difference = max((p.full_tensor() - q.full_tensor()).abs().max().item() for p, q in pairs)
    if dist.get_rank() == 0:
        for step in range(0, STEPS, 8):
            print(f"step {step}: loss {sum(losses[step : step + 8]) / 8:.4f}")
        print(f"resumed at step {SAVED}: largest difference from the uninterrupted run {difference}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
