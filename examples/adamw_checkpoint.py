"""Load an AdamW checkpoint into SPAM, into SPAM with sparse moments, and back into AdamW.

    pip install ladderkern && python examples/adamw_checkpoint.py

SPAM keeps what AdamW keeps (step, exp_avg, exp_avg_sq), so ``load_state_dict`` is all it takes. Learning rate, betas, eps and
weight decay come with the checkpoint; the options that AdamW lacks stay those of the SPAM that loads.
"""

import io

import torch
from torch import nn

from ladderkern import SPAM
from ladderkern.spam import mask

DENSITY, SEED, RESET = 0.25, 0, 500


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16))


def train(model, optimizer, first, last):
    for step in range(first, last):
        x = torch.randn(128, 32, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :16] * x[:, 16:]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def reload(saved, make_optimizer):
    """A model and an optimizer of ``make_optimizer(parameters)`` as the checkpoint holds them."""
    model = new_model()
    optimizer = make_optimizer(model.parameters())
    saved.seek(0)
    checkpoint = torch.load(saved, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer


def save(model, optimizer):
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return file


def with_sparse_moments(model, adamw_state):
    """SPAM with ``DENSITY``: of each dense moment, what the mask of the coming step's cycle draws."""
    optimizer = SPAM(model.parameters(), density=DENSITY, seed=SEED, reset_interval=RESET)
    state = {}
    for index, (p, s) in enumerate(zip(model.parameters(), adamw_state["state"].values(), strict=True)):
        drawn = mask(p.shape, DENSITY, seed=SEED, index=index, cycle=(int(s["step"]) + 1) // RESET)
        shape = p.shape if drawn.all() else (*p.shape[:-1], int(p.shape[-1] * DENSITY))
        state[index] = {"step": s["step"], **{key: s[key][drawn].view(shape) for key in ("exp_avg", "exp_avg_sq")}}
    optimizer.load_state_dict({**adamw_state, "state": state})
    return optimizer


def difference(model, other):
    return max((p - q).abs().max().item() for p, q in zip(model.parameters(), other.parameters(), strict=True))


def main():
    model = new_model()
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    print(f"AdamW, 50 steps: loss {train(model, adamw, 0, 50):.4f}")
    saved = save(model, adamw)
    saved_state = adamw.state_dict()  # of the same tensors as the optimizer: read before it goes on
    sparse_model, _ = reload(saved, SPAM)
    sparse = with_sparse_moments(sparse_model, saved_state)
    print(f"AdamW goes on: loss {train(model, adamw, 50, 100):.4f}")

    spam_model, spam = reload(saved, lambda p: SPAM(p, reset_interval=RESET))
    back, adamw_again = reload(save(spam_model, spam), torch.optim.AdamW)
    train(back, adamw_again, 50, 100)
    print(f"through SPAM and back, then AdamW goes on: largest difference {difference(model, back)}")

    plain_model, plain = reload(saved, lambda p: SPAM(p, reset_interval=None, threshold=None))
    train(plain_model, plain, 50, 100)
    print(f"SPAM without resets and clipping goes on as AdamW: largest difference {difference(model, plain_model):.1e}")

    print(f"SPAM goes on: loss {train(spam_model, spam, 50, 100):.4f}")
    print(f"SPAM with density {DENSITY} goes on: loss {train(sparse_model, sparse, 50, 100):.4f}")
    try:
        reload(saved, lambda p: SPAM(p, density=DENSITY))
    except ValueError as error:
        print(f"dense moments do not load into sparse ones by themselves: {error}")


if __name__ == "__main__":
    main()
