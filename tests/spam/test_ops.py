"""torch.ops.ladderkern.spam_step_ and spam_update called directly."""

import copy
import inspect

import pytest
import torch

import ladderkern
from ladderkern.spam import checks
from ladderkern.testing import floats, poisoned_allocations

STEP, UPDATE = torch.ops.ladderkern.spam_step_, torch.ops.ladderkern.spam_update
HYPER = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.1, "threshold": 50.0, "reset_interval": 7, "warmup_steps": 3,
    "unclipped_steps": 2, "cycle_correction": False, "freeze_zero_variance": False, "maximize": False, "density_16ths": 16,
    "row_mask": False, "seed": 5,
}  # fmt: skip
LR = torch.tensor(0.01, dtype=torch.float64)
OVERLOADS = pytest.mark.parametrize("overload", [STEP.default, STEP.reference], ids=["default", "reference"])
CONFIGS = {
    "dense": {},
    "element": {"density_16ths": 4},
    "row": {"density_16ths": 8, "row_mask": True},
    "maximize, freeze, cycle": {"maximize": True, "freeze_zero_variance": True, "cycle_correction": True},
}


def tensors(shapes=((16, 32), (5,)), *, param=torch.float32, moments=torch.float32, before=4.0, **hyper):
    """The five lists of a step in the middle of a run."""
    hyper = {**HYPER, **hyper}
    p = [floats(shape, param, seed=n) for n, shape in enumerate(shapes)]
    g = [floats(shape, param, seed=10 + n) for n, shape in enumerate(shapes)]
    held = [checks.compact_shape(shape, hyper["density_16ths"], hyper["row_mask"]) for shape in shapes]
    m = [floats(shape, moments, seed=20 + n) for n, shape in enumerate(held)]
    v = [floats(shape, moments, seed=30 + n).abs() for n, shape in enumerate(held)]
    return [p, g, m, v, [torch.tensor(before) for _ in shapes]]


def call(overload, lists, *, lr=LR, indices=None, placement=(), grad_scale=None, found_inf=None, **hyper):
    indices = list(range(len(lists[0]))) if indices is None else indices
    extra = {"grad_scale": grad_scale, "found_inf": found_inf}
    return overload(*lists, lr, **{**HYPER, **hyper}, indices=indices, placement=list(placement), **extra)


def results(lists):
    return [t for items in (lists[0], *lists[2:]) for t in items]


@OVERLOADS
@pytest.mark.parametrize(
    ("config", "moments", "amp"),
    [("dense", torch.float32, False), ("element", torch.bfloat16, True), ("row", torch.float32, True)],
    ids=str,
)
def test_opcheck_of_the_step(overload, config, moments, amp):
    lists = tensors(moments=moments, **CONFIGS[config])
    keywords = {**HYPER, **CONFIGS[config], "indices": [0, 1], "placement": []}
    if amp:
        keywords |= {"grad_scale": torch.tensor(2.0), "found_inf": torch.tensor(0.0)}
    torch.library.opcheck(overload, (*lists, LR), keywords)


def test_opcheck_of_the_update():
    masked = CONFIGS["element"]
    p, g, m, v, steps = ([t.requires_grad_(t.dim() > 0) for t in items] for items in tensors(**masked))
    torch.library.opcheck(UPDATE.default, (p[0], g[0], m[0], v[0], steps[0], LR), {**HYPER, **masked, "index": 0})


@OVERLOADS
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("before", [0.0, 4.0, 6.0, 7.0], ids=["first", "clipped", "reset", "ramp"])
def test_the_overloads_agree_with_the_optimizer(overload, assert_bitwise_equal, config, before):
    lists = tensors(before=before, **CONFIGS[config])
    other = copy.deepcopy(lists)
    hyper = {**HYPER, **CONFIGS[config]}
    call(overload, lists, **hyper)
    params = [torch.nn.Parameter(p) for p in other[0]]
    optimizer = ladderkern.SPAM(
        params,
        lr=0.01,
        betas=(hyper["beta1"], hyper["beta2"]),
        mask_unit="row" if hyper["row_mask"] else "element",
        bias_correction="cycle" if hyper["cycle_correction"] else "global",
        zero_variance="freeze" if hyper["freeze_zero_variance"] else "pass",
        density=hyper["density_16ths"] / 16,
        **{name: hyper[name] for name in hyper.keys() & inspect.signature(ladderkern.SPAM).parameters.keys()},
    )
    for p, g, m, v, step in zip(params, *other[1:], strict=True):
        p.grad = g
        optimizer.state[p] = {"step": step, "exp_avg": m, "exp_avg_sq": v}
    with ladderkern.backend("reference" if overload is STEP.reference else "auto"):
        optimizer.step()
    assert_bitwise_equal(results(lists), results(other))
    assert_bitwise_equal(lists[1], other[1])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_update_equals_the_reference_step_and_touches_nothing(assert_bitwise_equal, config):
    lists = tensors(((16, 32),), **CONFIGS[config])
    inputs = [items[0].clone() for items in lists]
    new = UPDATE(*inputs, LR, **{**HYPER, **CONFIGS[config]}, index=3)
    assert_bitwise_equal(inputs, [items[0] for items in lists])
    call(STEP.reference, lists, indices=[3], **CONFIGS[config])
    assert_bitwise_equal(list(new), results(lists))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("before", [0.0, 4.0, 6.0], ids=["first", "clipped", "reset"])
def test_gradients_of_the_update_are_right(config, before):
    lists = tensors(((16, 16),), param=torch.float64, moments=torch.float64, before=before, **CONFIGS[config])
    p, g, m, v, step = (items[0] for items in lists)
    lr = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    inputs = [t.requires_grad_() for t in (p, g, m, v)]

    def update(p, g, m, v, lr):
        return UPDATE(p, g, m, v, step, lr, **{**HYPER, **CONFIGS[config]})[:3]

    assert torch.autograd.gradcheck(update, (*inputs, lr), fast_mode=True)


def test_the_update_is_differentiable_where_nothing_has_moved_yet():
    zero = torch.zeros(3, dtype=torch.float64)
    p, m, v = (zero.clone().requires_grad_() for _ in range(3))
    g = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    UPDATE(p, g, m, v, torch.tensor(0.0), LR, **HYPER)[0].sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (p, g, m, v))


@OVERLOADS
@pytest.mark.parametrize("config", CONFIGS)
def test_results_do_not_depend_on_uninitialised_memory(overload, assert_bitwise_equal, config):
    # Strides that differ make a backend copy into fresh memory.
    lists = tensors(((16, 32), (16, 16), (5,), (0, 16)), moments=torch.bfloat16, **CONFIGS[config])
    lists[1] = [g.t().contiguous().t() for g in lists[1]]
    clean = copy.deepcopy(lists)
    call(overload, clean, **CONFIGS[config])
    with poisoned_allocations():
        call(overload, lists, **CONFIGS[config])
    assert_bitwise_equal(results(lists), results(clean))


@OVERLOADS
@pytest.mark.parametrize("config", ["dense", "element", "row"])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
def test_a_shard_equals_its_part_of_the_whole(overload, assert_bitwise_equal, config, moments):
    hyper = CONFIGS[config]
    whole = tensors(((64, 48),), moments=moments, **hyper)
    rows = tensors(((64, 48),), moments=moments, **hyper)
    call(overload, whole, **hyper)
    # Rows 16..47, and for the masks along the last dimension also columns 16..47.
    boxes = [(slice(16, 48), slice(0, 48))]
    boxes += [(slice(0, 64), slice(16, 48))]
    for box in boxes:
        cut = [items[0][compact_box(box, items[0], rows[0][0])].clone() for items in rows[:4]]
        local, start = box[1].stop - box[1].start, box[0].start * 48 + box[1].start
        shard = [[t] for t in cut] + [[rows[4][0].clone()]]
        call(overload, shard, placement=(local, 48, start, box[0].start), **hyper)
        expected = [whole[i][0][compact_box(box, whole[i][0], whole[0][0])] for i in (0, 2, 3)]
        assert_bitwise_equal([shard[i][0] for i in (0, 2, 3)], expected)


@pytest.mark.parametrize("config", ["dense", "element", "row"])
@pytest.mark.parametrize("row", [2**31 // 48 // 16 * 16, 2**44 // 48 // 16 * 16], ids=["past 2^31", "past 2^34 strata"])
def test_shards_far_into_a_parameter_draw_alike_in_each_overload(assert_bitwise_equal, config, row):
    far, same, near = (tensors(((32, 48),), moments=torch.bfloat16, **CONFIGS[config]) for _ in range(3))
    placement = (32 * 48, 32 * 48, row * 48, row)
    call(STEP.default, far, placement=placement, **CONFIGS[config])
    call(STEP.reference, same, placement=placement, **CONFIGS[config])
    call(STEP.reference, near, **CONFIGS[config])
    start = tensors(((32, 48),))[0][0] * (1 - 0.01 * HYPER["weight_decay"])
    moved = [lists[0][0] != start for lists in (far, same, near)]
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[1], moved[2]) == (config == "dense")


def compact_box(box, tensor, param):
    """The box of a parameter, in the coordinates of the parameter or of its compact moments."""
    ratios = [n / whole for n, whole in zip(tensor.shape, param.shape, strict=True)]
    return tuple(slice(int(s.start * r), int(s.stop * r)) for s, r in zip(box, ratios, strict=True))


BAD = [
    ("grads", lambda lists: lists[1].pop()),
    ("steps", lambda lists: lists[4].append(torch.tensor(0.0))),
    ("grads", lambda lists: lists[1].__setitem__(1, torch.zeros(6))),
    ("exp_avgs", lambda lists: lists[2].__setitem__(1, torch.zeros(6))),
    ("exp_avg_sqs", lambda lists: lists[3].__setitem__(1, torch.zeros(6))),
    ("params", lambda lists: lists[0].__setitem__(1, torch.zeros(5, dtype=torch.int64))),
    ("grads", lambda lists: lists[1].__setitem__(1, torch.zeros(5, dtype=torch.complex64))),
    ("exp_avgs", lambda lists: lists[2].__setitem__(1, torch.zeros(5, dtype=torch.float16))),
    ("exp_avg_sqs", lambda lists: lists[3].__setitem__(1, torch.zeros(5, dtype=torch.bfloat16))),
    ("steps", lambda lists: lists[4].__setitem__(1, torch.tensor(0))),
    ("steps", lambda lists: lists[4].__setitem__(1, torch.zeros(2))),
    ("params.*expanded", lambda lists: lists[0].__setitem__(1, torch.zeros(1).expand(5))),
    ("exp_avgs.*expanded", lambda lists: lists[2].__setitem__(1, torch.zeros(1).expand(5))),
    ("exp_avg_sqs.*expanded", lambda lists: lists[3].__setitem__(1, torch.zeros(1).expand(5))),
]


@OVERLOADS
@pytest.mark.parametrize(("name", "spoil"), BAD, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BAD)])
def test_unfit_tensors_are_named_before_anything_is_written(overload, assert_bitwise_equal, name, spoil):
    lists = tensors()
    spoil(lists)
    before = copy.deepcopy(lists)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
        call(overload, lists, indices=[0, 1])
    for after, items in zip(lists, before, strict=True):
        assert_bitwise_equal(after, items)


@OVERLOADS
@pytest.mark.parametrize(
    ("name", "keywords"),
    [("placement", {"placement": [1, 2, 3]}), ("indices", {"indices": [0]}), ("lr", {"lr": torch.zeros(2)})],
)
def test_unfit_arguments_are_named_before_anything_is_written(overload, assert_bitwise_equal, name, keywords):
    lists = tensors()
    before = copy.deepcopy(lists)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=name):
        call(overload, lists, **keywords)
    assert_bitwise_equal(results(lists), results(before))


@OVERLOADS
def test_an_empty_list_is_no_work(overload):
    lists = [[], [], [], [], []]
    assert call(overload, lists) is None
    assert lists == [[], [], [], [], []]
