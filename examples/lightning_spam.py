"""SPAM in PyTorch Lightning, and a checkpoint that resumes as if nothing had happened.

    pip install 'ladderkern[examples]' && python examples/lightning_spam.py

``configure_optimizers`` returns it, with a scheduler that advances every step. Leave ``gradient_clip_val`` unset: SPAM clips
each element by its own second moment, and a norm clipped before it would hide the spikes.
"""

import logging
import tempfile
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ladderkern import SPAM

STEPS, BATCH = 40, 64


class Net(lightning.LightningModule):
    """Learns the sign of a sum."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 1))
        self.losses = []

    def training_step(self, batch, _):
        x, y = batch
        loss = nn.functional.soft_margin_loss(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        # The published cycle of 500 / 150 / 20 scaled to a short run: moments restart at the 16th and the 32nd step.
        optimizer = SPAM(
            self.parameters(), lr=1e-2, density=0.25, mask_unit="row", reset_interval=16, warmup_steps=4, unclipped_steps=1
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def samples():
    x = torch.randn(STEPS * BATCH, 32, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, :16].abs() - x[:, 16:]).sum(1, keepdim=True).sub(12).sign())


class Resumable(DataLoader):
    """Goes on within an epoch: Lightning saves and loads its state_dict. torchdata's StatefulDataLoader is one too."""

    done = 0

    def __iter__(self):
        for i, batch in enumerate(super().__iter__()):
            if i >= self.done:
                self.done = i + 1
                yield batch
        self.done = 0

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def train(seed, folder, checkpoint=None):
    """A trained model; half way there is a checkpoint."""
    lightning.seed_everything(seed, verbose=False)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STEPS // 2, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, callbacks=[keep],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Net()
    trainer.fit(model, Resumable(samples(), batch_size=BATCH), ckpt_path=checkpoint)
    return model


def main():
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers|.*dirpath has changed")
    with tempfile.TemporaryDirectory() as folder:
        whole = train(0, f"{folder}/whole")
        resumed = train(
            1, f"{folder}/resumed", f"{folder}/whole/step={STEPS // 2}.ckpt"
        )  # other first weights: the checkpoint's count
    for step in range(0, STEPS, 8):
        print(f"step {step}: loss {sum(whole.losses[step : step + 8]) / 8:.4f}")
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    difference = max((p - q).abs().max().item() for p, q in pairs)
    print(f"resumed after {STEPS - len(resumed.losses)} steps: largest difference from the uninterrupted run {difference}")


if __name__ == "__main__":
    main()
