"""Train a ladder Llama over two ranks, and see how much of its communication hides behind compute.

    pip install 'ladderkern[examples]' && torchrun --nproc-per-node 2 examples/ladder_llama.py

Two processes on any CPU, a minute or so. A small random Llama learns the bytes of Python's documentation: wired as a ladder in
one line, sharded over the ranks in another. The link between them is made slow: each all-reduce takes 5 ms at least.
Standard wiring has only weight gradients to hide that behind; in a ladder the next module computes meanwhile.
"""

import time
import warnings
from collections import Counter
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ladderkern import SPAM, ladder
from ladderkern.cli.demo_training import QUICK, Plan, build_model, held_out_loss, lr_factor

LINK_SECONDS = 5e-3
STEPS, LR = 40, 2e-3
SETTING = replace(QUICK, hidden=256, layers=4, steps=STEPS)


class SlowLink(ladder.DelayedCommunicator):
    """Sums one after another, LINK_SECONDS each, and adds up how much of that was still to come when a sum was needed."""

    def __init__(self, group):
        super().__init__(ladder.ProcessGroupCommunicator(group), LINK_SECONDS)
        self.taken, self.exposed = Counter(), Counter()

    def wait(self, handle):
        self.taken[handle.name.phase] += LINK_SECONDS
        self.exposed[handle.name.phase] += max(handle.work.due - time.perf_counter(), 0)
        super().wait(handle)

    def report(self):
        return ", ".join(f"{phase} {1 - self.exposed[phase] / total:.0%}" for phase, total in self.taken.items())


def train(ladder_layers, plan):
    """The trained model, and what the link reports; the first rank prints the loss."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    link = SlowLink(mesh.get_group())
    model = build_model(plan.setting)
    ladder.to_ladder(model, ladder_layers)
    ladder.tensor_parallel(model, mesh, communicator=link)
    optimizer = SPAM(model.parameters(), lr=LR, reset_interval=30, warmup_steps=9, unclipped_steps=1)
    for step in range(1, plan.setting.steps + 1):
        windows = plan.windows(step)
        loss = model(input_ids=windows, labels=windows).loss
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_factor(step, plan.setting)
        optimizer.step()
        optimizer.zero_grad()
        if dist.get_rank() == 0 and step % 10 == 0:
            print(f"step {step}: loss {loss:.4f} nats a byte", flush=True)
    return model, link.report()


def main():
    torch.set_num_threads(1)  # the ranks share the cores
    warnings.filterwarnings("ignore", ".*must be retrained")  # they are about to be trained
    dist.init_process_group("gloo")
    plan = Plan.draw(SETTING)
    for name, ladder_layers in (("standard", []), ("ladder", None)):
        model, hidden = train(ladder_layers, plan)
        held_out = held_out_loss(model.eval(), plan.text, plan.setting)
        if dist.get_rank() == 0:
            print(
                f"{name} wiring: held-out loss {held_out:.4f} nats a byte; hidden share of communication: {hidden}", flush=True
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
