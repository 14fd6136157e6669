"""spam_step_ of any list of tensors: the bits do not depend on how they lie in memory, and are near the truth."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import dtypes, placed, places, properties, seeds

from ladderkern.spam import checks
from ladderkern.testing import assert_within_budget, floats

STEP = torch.ops.ladderkern.spam_step_
LR = torch.tensor(0.01, dtype=torch.float64)
NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs")
sizes = st.one_of(st.integers(0, 40), st.sampled_from([16, 48, 64, 144]))


@st.composite
def tensors(draw):
    """The four tensors of one parameter: (shape, their dtypes, their places)."""
    shape = tuple(draw(st.lists(sizes, max_size=3)))
    param, grad = draw(dtypes), draw(dtypes)
    moments = draw(st.sampled_from(checks.MOMENTS))
    return shape, (param, grad, moments, moments), [draw(places(len(shape))) for _ in range(4)], draw(seeds)


@st.composite
def rules(draw):
    """The keywords of a step."""
    return {
        "beta1": draw(st.sampled_from([0.0, 0.9])),
        "beta2": draw(st.sampled_from([0.0, 0.999])),
        "eps": 1e-6,
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "threshold": draw(st.sampled_from([0.0, 2.0, 5000.0])),
        "reset_interval": draw(st.sampled_from([0, 5])),
        "warmup_steps": draw(st.integers(0, 6)),
        "unclipped_steps": draw(st.integers(0, 3)),
        "cycle_correction": draw(st.booleans()),
        "freeze_zero_variance": draw(st.booleans()),
        "maximize": draw(st.booleans()),
        "density_16ths": draw(st.integers(1, 16)),
        "row_mask": draw(st.booleans()),
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
    }


def values(shape, dtypes_of, hyper, seed):
    """Parameter, gradient (every third element a spike) and moments in the middle of a run."""
    held = checks.compact_shape(shape, hyper["density_16ths"], hyper["row_mask"])
    made = [floats(s, torch.float64, seed=seed + i) for i, s in enumerate((shape, shape, held, held))]
    made[1].view(-1)[::3] *= 100
    made[3].abs_()
    return [t.to(dtype) for t, dtype in zip(made, dtypes_of, strict=True)]


@properties
@given(st.lists(tensors(), min_size=1, max_size=4), rules(), st.integers(0, 12), st.integers(1, 4))
def test_any_list_of_tensors(native, specs, hyper, before, threads):
    plain = [values(shape, kinds, hyper, seed) for shape, kinds, _, seed in specs]
    boxes = [[placed(t, place) for t, place in zip(row, spec[2], strict=True)] for row, spec in zip(plain, specs, strict=True)]
    exact = [[t.to(torch.float64, copy=True) for t in row] for row in plain]
    eager = [[t.clone() for t in row] for row in plain]
    ours = [[box.tensor for box in row] for row in boxes]
    grads = [row[1].clone() for row in plain]
    steps = []
    for rows, overload in ((ours, STEP.default), (plain, STEP.default), (eager, STEP.reference), (exact, STEP.reference)):
        steps.append([torch.tensor(float(before)) for _ in rows])
        lists = [list(items) for items in zip(*rows, strict=True)]
        torch.set_num_threads(threads if rows is ours else 1)
        overload(
            *lists, steps[-1], torch.tensor(0.01, dtype=torch.float64), **hyper, indices=list(range(len(rows))), placement=[]
        )
    torch.set_num_threads(1)
    assert all(step.item() == before + 1.0 for items in steps for step in items)
    for i, (row, same, near, true) in enumerate(zip(ours, plain, eager, exact, strict=True)):
        assert torch.equal(row[1], grads[i])
        for name, box, a, b, e, o in zip(NAMES, boxes[i], row, same, near, true, strict=True):
            box.assert_untouched(f"{name}[{i}]")
            assert torch.equal(a, b), f"{name}[{i}] depends on strides, start or threads"
            if a.numel() >= 256 and not (
                name.startswith("exp_avg") and a.dtype == torch.bfloat16
            ):  # those are rounded by a draw
                assert_within_budget(a, e, o, f"{name}[{i}]")
