"""Launches that a call and its backward need on the Triton backend, counted in the interpreter."""

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ladderkern
from ladderkern.testing import counted_traffic, floats

pytestmark = pytest.mark.interpreter


class TorchLaunches(TorchDispatchMode):
    """Counts torch's own ops around ours that launch a kernel on a device: all but views and allocations."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if func.namespace == "aten" and not func.is_view and "empty" not in name and name not in ("detach", "promote_types"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def leaf(*shape, dtype=torch.float32):
    return floats(shape, dtype).requires_grad_()


def spam_of_two_groups_and_dtypes():
    params = [[leaf(16, 16), leaf(5), leaf(16, 16, dtype=torch.bfloat16)] for _ in range(2)]
    optimizer = ladderkern.SPAM([{"params": params[0]}, {"params": params[1], "weight_decay": 0.1}], lr=0.01)
    for p in (*params[0], *params[1]):
        p.grad = torch.ones_like(p)
    optimizer.step()  # allocates the state
    return optimizer.step


def loss_of(function):
    logits, labels = leaf(6, 40), torch.tensor([4, 9, 35, 0, 11, 12])
    table = ladderkern.DistanceTable(floats((32, 5)))
    return lambda: function(logits, labels, table).backward()


def prm_scores():
    logits, offsets = leaf(9, 2), torch.tensor([0, 4, 9])

    def call():
        scores = ladderkern.prm.score_steps(logits, offsets)
        torch.autograd.backward((scores.prob, scores.product), (torch.ones(9), torch.ones(2)))

    return call


def norm_of(function, tensors):
    inputs = [leaf(3, 64) for _ in range(tensors)]
    weight = leaf(64)

    def call():
        outputs = function(*inputs, weight)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.backward(outputs, [torch.ones(3, 64) for _ in outputs])

    return call


CALLS = {
    "SPAM.step, 2 groups, 2 dtypes each": (spam_of_two_groups_and_dtypes, {"_spam_step": 4}),
    "token_discrepancy_loss": (
        lambda: loss_of(ladderkern.token_discrepancy_loss), {"_discrepancy_fwd": 1, "_discrepancy_bwd": 1}
    ),
    "cross_entropy_with_discrepancy": (
        lambda: loss_of(ladderkern.cross_entropy_with_discrepancy), {"_joint_fwd": 1, "_joint_bwd": 1}
    ),
    "prm.score_steps": (prm_scores, {"_prm_scores_fwd": 1, "_prm_scores_bwd": 1}),
    "add_rms_norm": (
        lambda: norm_of(ladderkern.add_rms_norm, 2), {"_rms_norm_fwd": 1, "_rms_norm_bwd": 1, "_sum_partials": 1}
    ),
    "rms_norm": (
        lambda: norm_of(ladderkern.rms_norm, 1), {"_rms_norm_fwd": 1, "_rms_norm_bwd": 1, "_sum_partials": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_launches_of_a_call_and_its_backward(name, table_row, monkeypatch):
    """The checks that read values run on CPU tensors alone: switched off here, so that what is seen is what a device runs."""
    for module in [module for key, module in sys.modules.items() if key.startswith("ladderkern.")]:
        if hasattr(module, "values_readable"):
            monkeypatch.setattr(module, "values_readable", lambda tensor: False)
    make, expected = CALLS[name]
    with ladderkern.backend("triton"):
        call = make()
        with counted_traffic() as launches, TorchLaunches() as others:
            call()
    counts = Counter(launch.kernel for launch in launches)
    listed = ", ".join(f"{n} {op}" for op, n in sorted(others.counts.items()))
    table_row("Launches of a call and its backward", ("call", "our kernels", "torch's own ops"), (name, counts.total(), listed))
    assert counts == expected
