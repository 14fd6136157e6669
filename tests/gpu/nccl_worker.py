"""One rank of tests/gpu/test_nccl.py, ``nccl_worker.py cuda|cpu``: a ladder whose sums cross devices gives what one gives."""

import sys

import torch
import torch.distributed as dist

from ladderkern.ladder import LadderStack
from ladderkern.testing import assert_within_budget, floats
from ladderkern.testing.branches import HIDDEN, branches

DTYPE = torch.float32


def run(stack, dtype, device):
    """The stream, and the gradient of the input."""
    x = floats((4, 3, HIDDEN), dtype).to(device).requires_grad_()
    out = stack.to(device)(x)
    out.sum().backward()
    return out.detach().cpu(), x.grad.cpu()


def main(kind):
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    for delay in (0, 1):
        ours = run(LadderStack(branches([rank], dtype=DTYPE), delay=delay, group=dist.group.WORLD), DTYPE, device)
        plain = run(LadderStack(branches(range(world), dtype=DTYPE), delay=delay), DTYPE, "cpu")
        exact = run(LadderStack(branches(range(world)), delay=delay), torch.float64, "cpu")
        for name, *tensors in zip(("stream", "gradient"), ours, plain, exact, strict=True):
            assert_within_budget(*tensors, f"delay {delay}, rank {rank}: {name}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
