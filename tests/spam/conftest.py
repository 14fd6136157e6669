"""An independent SPAM to compare with, written from the published arithmetic, and gradients worth stepping on."""

import math

import pytest
import torch

from ladderkern.testing import floats

PUBLISHED_DEFAULTS = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "threshold": 5000.0,
    "reset_interval": 500,
    "warmup_steps": 150,
    "unclipped_steps": 20,
    "bias_correction": "global",
    "zero_variance": "pass",
    "maximize": False,
}


class Simulation:
    """SPAM of one tensor in one dtype: float64 makes it the oracle, float32 the plain eager yardstick.

    Phases are Python integers and powers and cosines come from ``math``: nothing is shared with the library. ``mask`` maps a
    cycle to the drawn elements; moments are kept full-size here, those outside the mask are simply never looked at.
    """

    def __init__(self, param, dtype, *, mask=None, **options):
        unknown = set(options) - set(PUBLISHED_DEFAULTS)
        assert not unknown, unknown
        self.options = {**PUBLISHED_DEFAULTS, **options}
        self.mask = mask
        self.p = param.detach().to(dtype).clone()
        self.m, self.v = torch.zeros_like(self.p), torch.zeros_like(self.p)
        self.n = 0

    def step(self, grad):
        o = self.options
        self.n += 1
        interval = o["reset_interval"] or 0
        cycle, k = divmod(self.n, interval) if interval else (0, self.n)
        g = grad.to(self.p.dtype)
        if o["maximize"]:
            g = -g
        if cycle and k == 0:
            self.m, self.v = torch.zeros_like(self.m), torch.zeros_like(self.v)
        if o["threshold"] and k >= o["unclipped_steps"]:
            bound = o["threshold"] * self.v
            spike = g * g > bound
            if o["zero_variance"] == "pass":
                spike &= self.v > 0
            g = torch.where(spike, torch.copysign(bound.sqrt(), g), g)
        beta1, beta2 = o["betas"]
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        t = k + 1 if o["bias_correction"] == "cycle" and cycle else self.n
        size = o["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        if cycle and k < o["warmup_steps"]:
            size *= 1 - 0.99 * (1 + math.cos(math.pi * k / (o["warmup_steps"] + 1))) / 2
        decayed = self.p * (1 - o["lr"] * o["weight_decay"])
        moved = decayed - size * (self.m / (self.v.sqrt() + o["eps"]))
        drawn = self.mask(cycle) if self.mask else torch.ones_like(self.p, dtype=torch.bool)
        self.p = torch.where(drawn, moved, decayed)
        return self

    def moments(self):
        """The moments as the optimizer holds them: of the drawn elements alone, in order."""
        if self.mask is None:
            return self.m, self.v
        drawn = self.mask(self.n // self.options["reset_interval"])
        return self.m[drawn], self.v[drawn]


@pytest.fixture
def simulation():
    return Simulation


@pytest.fixture
def spiky_gradients():
    """Standard normal gradients, a few elements of each 8th step multiplied by up to 10^5: [(float32 tensor)] of ``steps``."""

    def make(steps, shape, dtype=torch.float32, seed=0):
        out = []
        for n in range(steps):
            g = floats(shape, dtype, seed=1000 * seed + n)
            if n % 8 == 5 and g.numel():
                g.view(-1)[n % 7 :: 7] *= 10.0 ** (1 + n % 5)
            out.append(g)
        return out

    return make


@pytest.fixture
def train():
    """Step an optimizer once for each entry of ``gradients``: a list with one gradient (or None) a parameter."""

    def run(optimizer, gradients):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for entry in gradients:
            for p, g in zip(params, entry, strict=True):
                if g is not None and g.dtype != p.dtype:
                    p.grad_dtype = g.dtype
                p.grad = None if g is None else g.clone()
            optimizer.step()

    return run


@pytest.fixture
def snapshot():
    """Copies of everything an optimizer owns, in order: parameters, then the state of each."""

    def take(optimizer):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        tensors = [p.detach().clone() for p in params]
        for p in params:
            tensors += [optimizer.state[p][key].clone() for key in sorted(optimizer.state.get(p, {}))]
        return tensors

    return take


@pytest.fixture
def assert_bitwise_equal():
    """Assert that two lists of tensors are equal in dtype, shape and every byte (so NaN equals the same NaN)."""

    def check(actual, expected):
        assert len(actual) == len(expected)
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert a.dtype == b.dtype, f"[{i}]: {a.dtype}, expected {b.dtype}"
            assert a.shape == b.shape, f"[{i}]: {tuple(a.shape)}, expected {tuple(b.shape)}"
            bits = [t.detach().contiguous().view(-1).view(torch.uint8) for t in (a, b)]
            assert torch.equal(*bits), f"[{i}]: {a} is not bitwise {b}"

    return check
