"""SPAM inside the backward: each parameter steps as soon as its gradient is there, and the gradient is freed.

    pip install ladderkern && python examples/optimizer_in_backward.py

Prints the peak memory of a training step above weights and moments, counted allocation by allocation with torch.profiler, for
the ordinary step and for this one; and that both train the same weights.
"""

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ladderkern import SPAM

LAYERS, WIDTH, BATCH, STEPS = 16, 256, 8, 20
OPTIONS = {"lr": 1e-3, "reset_interval": 8, "warmup_steps": 2, "unclipped_steps": 1}


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))


def step_in_backward(model):
    """From here on a backward trains the model: there is no ``step()`` to call, and no gradient is left behind."""
    for i, p in enumerate(model.parameters()):
        # With density < 1 masks are drawn by (seed, index), and the index of a lone parameter is 0: a seed for each.
        optimizer = SPAM([p], seed=i, **OPTIONS)

        def step(p, optimizer=optimizer):
            optimizer.step()
            p.grad = None

        p.register_post_accumulate_grad_hook(step)


def batch(step):
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(step))
    return x, x.roll(1, dims=1).relu()


def train_step(model, step, optimizer=None):
    x, y = batch(step)
    loss = (model(x) - y).square().mean()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def peak_bytes(run):
    """The most bytes alive at once during ``run()``, above those alive before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    alive = peak = 0
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        alive += event.nbytes()  # negative where memory is freed
        peak = max(peak, alive)
    return peak


def main():
    ordinary, in_backward = new_model(), new_model()
    optimizer = SPAM(ordinary.parameters(), **OPTIONS)
    step_in_backward(in_backward)
    for step in range(STEPS):  # the first step makes the moments, so that the peak is of a later one
        losses = train_step(ordinary, step, optimizer), train_step(in_backward, step)
        if step % 5 == 4:
            print("step {}: loss {:.4f}, in backward {:.4f}".format(step, *losses))
    peaks = [peak_bytes(lambda: train_step(ordinary, STEPS, optimizer)), peak_bytes(lambda: train_step(in_backward, STEPS))]
    print(f"gradients: {sum(p.numel() * p.element_size() for p in ordinary.parameters())} bytes")
    print("peak above weights and moments: ordinary step {} bytes, in backward {} bytes".format(*peaks))
    pairs = zip(ordinary.parameters(), in_backward.parameters(), strict=True)
    print(f"largest difference of weights {max((p - q).abs().max().item() for p, q in pairs)}")


if __name__ == "__main__":
    main()
