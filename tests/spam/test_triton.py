"""The Triton kernel in the interpreter, against the float64 oracle and the reference, one step from each state at a time."""

import itertools

import pytest
import torch

import ladderkern
from ladderkern.spam import checks
from ladderkern.testing import LAYOUTS, assert_within_budget, floats, guarded

pytestmark = pytest.mark.interpreter

TRITON, REFERENCE = torch.ops.ladderkern.spam_step_.triton, torch.ops.ladderkern.spam_step_.reference
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
HYPER = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.1, "threshold": 50.0, "reset_interval": 5,
    "warmup_steps": 3, "unclipped_steps": 2, "cycle_correction": False, "freeze_zero_variance": False, "maximize": False,
    "density_16ths": 16, "row_mask": False, "seed": -(2**40) - 7,
}  # fmt: skip
DENSE, ELEMENT, ROW = {}, {"density_16ths": 5}, {"density_16ths": 5, "row_mask": True}
MASKS = pytest.mark.parametrize("mask", [DENSE, ELEMENT, ROW], ids=["dense", "element", "row"])
LR = torch.tensor(0.01, dtype=F64)
NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps")


def make(shapes, param=F32, grad=F32, moments=F32, before=3.0, seed=0, **hyper):
    """The five lists of a step in the middle of a run; one dtype for all tensors, or one for each."""
    hyper = {**HYPER, **hyper}
    param, grad, moments = ([d] * len(shapes) if isinstance(d, torch.dtype) else d for d in (param, grad, moments))
    held = [checks.compact_shape(shape, hyper["density_16ths"], hyper["row_mask"]) for shape in shapes]
    p = [floats(shape, d, seed=seed + i) for i, (shape, d) in enumerate(zip(shapes, param, strict=True))]
    g = [gradient(shape, d, seed + 50 + i) for i, (shape, d) in enumerate(zip(shapes, grad, strict=True))]
    m = [floats(shape, d, seed=seed + 100 + i) for i, (shape, d) in enumerate(zip(held, moments, strict=True))]
    v = [floats(shape, d, seed=seed + 150 + i).abs() for i, (shape, d) in enumerate(zip(held, moments, strict=True))]
    return [p, g, m, v, [torch.tensor(before) for _ in shapes]]


def gradient(shape, dtype, seed):
    """Every third element is a spike."""
    g = floats(shape, F64, seed=seed)
    g.view(-1)[::3] *= 100
    return g.to(dtype)


def clone(lists, dtype=None):
    return [[t.detach().to(dtype or t.dtype, copy=True) for t in items] for items in lists[:4]] + [
        [t.clone() for t in lists[4]]
    ]


def drawn_of(shape, mask, **where):
    """The mask of the parameter with index 3, the first of each call here, as ``ladderkern.spam.mask`` draws it."""
    unit = "row" if mask.get("row_mask") else "element"
    density = mask.get("density_16ths", 16) / 16
    return ladderkern.spam.mask(shape, density, seed=HYPER["seed"], index=3, mask_unit=unit, **where)


def call(op, lists, *, lr=LR, indices=None, placement=(), grad_scale=None, found_inf=None, **hyper):
    indices = list(range(3, 3 + len(lists[0]))) if indices is None else indices
    extra = {"grad_scale": grad_scale, "found_inf": found_inf}
    op(*lists, lr, **{**HYPER, **hyper}, indices=indices, placement=list(placement), **extra)


def assert_step_right(lists, **options):
    """Step ``lists`` in place with Triton; the reference and the float64 oracle start from the same state."""
    eager, oracle = clone(lists), clone(lists, F64)
    call(TRITON, lists, **options)
    call(REFERENCE, eager, **options)
    call(REFERENCE, oracle, **options)
    for name, ours, plain, exact in zip(NAMES, lists, eager, oracle, strict=True):
        for i, tensors in enumerate(zip(ours, plain, exact, strict=True)):
            assert_within_budget(*tensors, f"{name}[{i}]")
    assert all(torch.equal(a, b) for a, b in zip(lists[4], eager[4], strict=True))


def assert_equal(ours, others, names=NAMES):
    for name, a, b in zip(NAMES, ours, others, strict=True):
        if name in names:
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{name}[{i}]: {text}")  # noqa: B023


@MASKS
@pytest.mark.parametrize("correction", ["global", "cycle"])
def test_every_phase_of_three_cycles(mask, correction):
    lists = make([(16, 32), (7,)], before=0.0, **mask)
    for moment in (*lists[2], *lists[3]):
        moment.zero_()
    for n in range(1, 13):
        lists[1] = [gradient(g.shape, F32, 1000 * n + i) for i, g in enumerate(lists[1])]
        assert_step_right(lists, cycle_correction=correction == "cycle", **mask)
    assert [step.item() for step in lists[4]] == [12.0, 12.0]


@MASKS
def test_all_dtypes_mixed_in_one_call(mask):
    combinations = list(itertools.product((F32, BF16, F16, F64), (F32, BF16, F16, F64), (F32, BF16, F64)))
    if mask is ROW:  # 16 programs a tensor: a part of them is enough to see that dtypes and rows do not meddle
        combinations = combinations[::7]
    param, grad, moments = zip(*combinations, strict=True)
    lists = make([(16, 16)] * len(combinations), list(param), list(grad), list(moments), **mask)
    assert_step_right(lists, **mask)


@pytest.mark.parametrize("before", [0.0, 5.0, 2.0**24 - 8])
def test_odd_sizes(before):
    sizes = (1, 3, 15, 16, 63, 64, 65, 1000, 1024, 1025, 2049)
    assert_step_right(make([(size,) for size in sizes], before=before))


@pytest.mark.parametrize("shape", [(16, 16), (3, 48), (2, 5, 32), (17, 16), (1, 2096)], ids=str)
def test_element_masks_of_odd_shapes(shape):
    assert_step_right(make([shape], density_16ths=3), density_16ths=3)


@pytest.mark.parametrize("shape", [(16, 1), (32, 7), (16, 2, 33), (16, 1030)], ids=str)
def test_row_masks_of_odd_shapes(shape):
    assert_step_right(make([shape], **ROW), **ROW)


@pytest.mark.parametrize("row_mask", [False, True], ids=["element", "row"])
@pytest.mark.parametrize("chosen", [1, 4, 8, 11, 15])
def test_exactly_the_drawn_elements_move(chosen, row_mask):
    hyper = {"density_16ths": chosen, "row_mask": row_mask, "weight_decay": 0.0}
    lists = make([(16, 32)], before=11.0, **hyper)
    lists[1][0].fill_(1.0)
    before = clone(lists)
    call(TRITON, lists, **hyper)
    assert torch.equal(lists[0][0] != before[0][0], drawn_of((16, 32), hyper, cycle=2))


@pytest.mark.parametrize("mask", [ELEMENT, ROW], ids=["element", "row"])
def test_gradients_outside_the_mask_are_not_looked_at(mask):
    lists = make([(16, 16)], **mask)
    expected = clone(lists)
    drawn = drawn_of((16, 16), mask)
    lists[1][0][~drawn] = float("nan")
    call(TRITON, lists, **mask)
    call(TRITON, expected, **mask)
    assert_equal(lists, expected, ("params", "exp_avgs", "exp_avg_sqs"))


@MASKS
@pytest.mark.parametrize("empty", [(0,), (1,), (3,), (0, 1, 2, 3)], ids=str)
def test_empty_tensors_anywhere(mask, empty):
    shapes = [(0, 16) if i in empty else (16, 32) for i in range(4)]
    lists = make(shapes, **mask)
    assert_step_right(lists, **mask)
    assert all(step.item() == 4 for step in lists[4])


def test_empty_lists():
    lists = [[], [], [], [], []]
    call(TRITON, lists)
    assert lists == [[], [], [], [], []]


@pytest.mark.parametrize("moments", [F32, BF16])
@pytest.mark.parametrize(
    ("layout", "which"),
    [(layout, which) for layout in LAYOUTS for which in range(4) if layout != "expanded" or NAMES[which] == "grads"],
    ids=lambda case: NAMES[case] if isinstance(case, int) else case,
)
def test_layouts(layout, which, moments):
    shape = (2, 3, 4, 5)
    lists = make([shape], moments=moments)
    values = floats(shape, lists[which][0].dtype, layout=layout, offset=1, seed=77)
    lists[which][0] = values.abs_() if which == 3 else values
    guard = guarded(lists[which][0])
    lists[which][0] = guard.tensor
    assert_step_right(lists)
    guard.assert_untouched()


def test_copies_live_until_the_launch():
    lists = make([(64, 64)] * 4)
    lists[1] = [floats((64,), seed=60 + i).expand(64, 64) for i in range(4)]
    assert_step_right(lists)


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_dense_layouts_shared_by_all_tensors_are_walked_in_place(layout):
    lists = [[floats((2, 3, 4, 5), layout=layout, seed=i).abs_()] for i in range(4)] + [[torch.tensor(3.0)]]
    assert_step_right(lists)  # uploads its table, unless an earlier test's tensors lay at the same addresses
    uploads = kernel_module().TABLES.uploads
    assert_step_right(lists)
    assert kernel_module().TABLES.uploads == uploads, "copies would have new addresses"


@pytest.mark.parametrize("which", [0, 2, 3], ids=[NAMES[i] for i in (0, 2, 3)])
def test_expanded_outputs_are_refused(which):
    lists = make([(4, 6)])
    lists[which][0] = torch.zeros(6).expand(4, 6)
    with pytest.raises(ValueError, match=rf"{NAMES[which]}\[0\] .* expanded"):
        call(TRITON, lists)


@MASKS
@pytest.mark.parametrize("offset", [1, 2, 4, 31])
def test_misaligned_tensors_give_the_same_bits(mask, offset):
    lists = make([(32, 48)], **mask)
    shifted = [[guarded(floats(t.shape, t.dtype, offset=offset).copy_(t)) for t in items] for items in lists[:4]]
    views = [[guard.tensor for guard in items] for items in shifted] + [[lists[4][0].clone()]]
    call(TRITON, lists, **mask)
    call(TRITON, views, **mask)
    assert_equal(views, lists)
    for items in shifted:
        items[0].assert_untouched()


@MASKS
@pytest.mark.parametrize("grad", [F32, BF16])
def test_grad_scale(mask, grad):
    lists = make([(16, 32), (5,)], grad=grad, **mask)
    expected = clone(lists)
    scale = torch.tensor([3.0])
    call(REFERENCE, expected, grad_scale=scale, **mask)
    assert_step_right(lists, grad_scale=scale, found_inf=torch.tensor(0.0), **mask)
    assert_equal(lists, expected, ("grads", "steps"))


@MASKS
def test_nothing_changes_where_an_infinity_was_found(mask):
    lists = make([(16, 32), (5,), (0,)], **mask)
    before = clone(lists)
    call(TRITON, lists, grad_scale=torch.tensor(2.0), found_inf=torch.tensor(1.0), **mask)
    assert_equal(lists, before)


def test_an_expanded_gradient_cannot_be_unscaled():
    lists = make([(4, 6)])
    lists[1][0] = torch.ones(6).expand(4, 6)
    with pytest.raises(ValueError, match=r"grads\[0\] .* expanded"):
        call(TRITON, lists, grad_scale=torch.tensor(2.0))


@pytest.mark.parametrize("lr", [torch.tensor(0.02), torch.tensor([0.02]), torch.tensor(0.02, dtype=F64)], ids=str)
@pytest.mark.parametrize("param", [F32, F64])
def test_lr_tensors(lr, param):
    assert_step_right(make([(40,)], param, moments=param), lr=lr)


@pytest.mark.parametrize("before", [0.0, 4.0, 9.0])
def test_a_restart_ignores_what_the_moments_hold(before):
    lists = make([(40,), (16, 16)], before=before)
    if before:
        for moment in (*lists[2], *lists[3]):
            moment.fill_(float("nan"))
    assert_step_right(lists)
    assert all(t.isfinite().all() for items in lists for t in items)


@pytest.mark.parametrize("freeze", [False, True])
def test_zero_variance_nan_and_infinity(freeze):
    lists = make([(64,)])
    lists[3][0][:32] = 0
    lists[1][0][::4] = float("inf")
    lists[1][0][1::4] = float("nan")
    lists[1][0][2::4] = 0
    eager = clone(lists)
    call(TRITON, lists, freeze_zero_variance=freeze)
    call(REFERENCE, eager, freeze_zero_variance=freeze)
    for name, ours, plain in zip(NAMES, lists, eager, strict=True):
        assert_within_budget(ours[0], plain[0], plain[0].double(), name)


@pytest.mark.parametrize(
    "hyper",
    [{"threshold": 0.0}, {"reset_interval": 0}, {"maximize": True}, {"weight_decay": 0.0}, {"beta1": 0.0}, {"warmup_steps": 0},
     {"unclipped_steps": 0}, {"reset_interval": 1, "warmup_steps": 1}, {"eps": 1e-30}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("param", [F32, F64])
def test_options(hyper, param):
    for before in (0.0, 6.0):
        assert_step_right(make([(40,)], param, moments=param, before=before), **hyper)


SHARDS = {
    "element": (ELEMENT, (slice(None), slice(16, 48)), (32, 64, 16, 0)),
    "row": (ROW, (slice(16, 48), slice(None)), (32 * 64, 48 * 64, 16 * 64, 16)),
    "row, column shard": (ROW, (slice(None), slice(8, 24)), (16, 64, 8, 0)),
    "dense": (DENSE, (slice(None), slice(5, 25)), (20, 64, 5, 0)),
}


@pytest.mark.parametrize("moments", [F32, BF16])
@pytest.mark.parametrize("case", SHARDS)
def test_a_shard_steps_as_its_part_of_the_whole(case, moments):
    mask, part, placement = SHARDS[case]
    whole = make([(48, 64)], moments=moments, **mask)
    drawn = drawn_of((48, 64), mask)
    shard = [[whole[i][0][part].clone()] for i in range(2)]
    held = checks.compact_shape(shard[0][0].shape, mask.get("density_16ths", 16), mask.get("row_mask", False))
    spread = [torch.zeros(48, 64, dtype=moments).masked_scatter_(drawn, whole[i][0])[part] for i in (2, 3)]
    shard += [[moment[drawn[part]].view(held)] for moment in spread] + [[whole[4][0].clone()]]
    call(TRITON, shard, placement=placement, **mask)
    call(TRITON, whole, **mask)
    assert torch.equal(shard[0][0], whole[0][0][part])
    for i in (2, 3):
        after = torch.zeros(48, 64, dtype=moments).masked_scatter_(drawn, whole[i][0])[part]
        assert torch.equal(shard[i][0].reshape(-1), after[drawn[part]])


@MASKS
def test_bfloat16_moments_are_rounded_as_the_reference_rounds_them(mask):
    lists = make([(16, 80), (1030,)], moments=BF16, **mask)
    lists[1][0][0, :4] = torch.tensor([float("nan"), float("inf"), 3e38, -3e38])
    expected = clone(lists)
    call(TRITON, lists, threshold=0.0, **mask)  # without the square root of the clip the float32 moments have equal bits
    call(REFERENCE, expected, threshold=0.0, **mask)
    assert_equal(lists, expected, ("exp_avgs", "exp_avg_sqs", "steps"))


@MASKS
@pytest.mark.parametrize("amp", [False, True])
def test_opcheck(mask, amp):
    lists = make([(16, 16), (5,)], **mask)
    keywords = {**HYPER, **mask, "indices": [0, 1], "placement": []}
    if amp:
        keywords |= {"grad_scale": torch.tensor(2.0), "found_inf": torch.tensor(0.0)}
    torch.library.opcheck(TRITON, (*lists, LR), keywords)


def kernel_module():
    from ladderkern.spam import kernels

    return kernels


def test_tables_are_uploaded_once():
    lists = make([(16, 16), (5,), (3, 16)], **ELEMENT)
    tables = kernel_module().TABLES
    call(TRITON, lists, **ELEMENT)
    uploads = tables.uploads
    for lr in (0.1, 0.2):
        call(TRITON, lists, lr=torch.tensor(lr, dtype=F64), **ELEMENT)
    assert tables.uploads == uploads
    call(TRITON, lists, indices=[5, 6, 7], **ELEMENT)
    assert tables.uploads > uploads


def test_a_short_list_is_refused():
    lists = make([(4,), (5,)])
    lists[2].pop()
    with pytest.raises(ValueError, match="exp_avgs must have one entry"):
        call(TRITON, lists)
