"""SPAM in a training loop of accelerate, with gradient accumulation, a scheduler, and a checkpoint that resumes exactly.

    pip install 'ladderkern[examples]' && accelerate launch --cpu examples/accelerate_spam.py      # or plain python

Nothing is special: SPAM goes through ``prepare`` as any ``torch.optim.Optimizer``, and ``save_state`` takes its moments along.
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ladderkern import SPAM

STEPS, ACCUMULATE, BATCH = 40, 2, 32


def samples():
    x = torch.randn(STEPS * ACCUMULATE * BATCH, 32, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, :16].abs() - x[:, 16:]).sum(1, keepdim=True).sub(12).sign())


class Run:
    def __init__(self, seed):
        torch.manual_seed(seed)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
        model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1))
        # The published cycle of 500 / 150 / 20 scaled to a short run: moments restart at the 16th and the 32nd step.
        optimizer = SPAM(
            model.parameters(), lr=1e-2, density=0.25, mask_unit="row", reset_interval=16, warmup_steps=4, unclipped_steps=1
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        data = DataLoader(samples(), batch_size=BATCH)
        self.model, self.optimizer, self.data, self.scheduler = self.accelerator.prepare(model, optimizer, data, scheduler)

    def train(self, first=0, folder=None):
        """The loss of each micro-batch from step ``first`` on; half way, the state goes into ``folder``."""
        losses = []
        data = self.accelerator.skip_first_batches(self.data, first * ACCUMULATE) if first else self.data
        for i, (x, y) in enumerate(data, start=first * ACCUMULATE):
            with self.accelerator.accumulate(self.model):
                loss = nn.functional.soft_margin_loss(self.model(x), y)
                self.accelerator.backward(loss)  # divides by ACCUMULATE
                self.optimizer.step()  # and these three act when a batch is whole
                self.scheduler.step()
                self.optimizer.zero_grad()
            losses.append(self.accelerator.gather(loss.detach()).mean().item())
            if folder and i + 1 == len(self.data) // 2:
                self.accelerator.save_state(folder)
        return losses


def main():
    with tempfile.TemporaryDirectory() as folder:
        whole = Run(seed=0)
        losses = whole.train(folder=folder)
        resumed = Run(seed=1)  # other first weights, all of which the checkpoint replaces
        resumed.accelerator.load_state(folder)
        resumed.train(first=len(whole.data) // ACCUMULATE // 2)
    for i in range(0, len(losses), 16):
        whole.accelerator.print(f"step {i // ACCUMULATE}: loss {sum(losses[i : i + 16]) / len(losses[i : i + 16]):.4f}")
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    difference = max((p - q).abs().max().item() for p, q in pairs)
    whole.accelerator.print(f"resumed half way: largest difference from the uninterrupted run {difference}")
    whole.accelerator.end_training()


if __name__ == "__main__":
    main()
