"""The Triton kernels in the interpreter, against an oracle in extended precision and plain PyTorch in the logits' dtype."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ladderkern.discrepancy.table import DistanceTable
from ladderkern.testing import assert_within_budget, floats, guarded, poisoned_allocations

pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns of inf - inf

OPS = torch.ops.ladderkern
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
METRICS = ("mse", "sqeuclidean", "euclidean")
INF, NAN = float("inf"), float("nan")
TABLES = {}


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    """Rows here fit into one block; with blocks of 64 columns they do not, and end in the middle of one."""
    if request.param == "many blocks":
        small_blocks(monkeypatch)


def small_blocks(monkeypatch):
    from ladderkern.discrepancy import kernels

    monkeypatch.setattr(kernels, "_blocks", lambda *_: {"BLOCK": 64, "num_warps": 1})


def distance_table(num_codes, metric="mse", storage="table", dtype=F16, dim=5):
    key = (num_codes, metric, storage, dtype, dim)
    if key not in TABLES:
        TABLES[key] = DistanceTable(floats((num_codes, dim), seed=7), metric, dtype, storage=storage)
    return TABLES[key]


def make(T=6, V=150, N=101, start=4, dtype=F32, table=None, spread=3.0, **joint):
    """Inputs of a call. Labels: image codes, the first and the last of them among them, then one text token."""
    table = table or distance_table(N)
    logits = (spread * floats((T, V), F64, seed=1)).to(dtype)
    labels = start + torch.randint(N, (T,), generator=torch.Generator().manual_seed(2))
    labels[:2] = torch.tensor([start, start + N - 1])[:T]
    if T > 2 and V > N:
        labels[2] = 0 if start else V - 1
    wide = F64 if dtype == F64 else F32
    return SimpleNamespace(
        logits=logits, labels=labels, table=table.data, options={**table.options, "image_start": start}, joint=joint,
        grads=[floats((T,), wide, seed=3), floats((T,), wide, seed=4)],
    )  # fmt: skip


def run(case, overload):
    """What the overloads of both ops give: {name: tensor}, the gradients included."""
    inputs = (case.logits, case.labels, case.table)
    if not case.joint:
        loss, lse = getattr(OPS.token_discrepancy, overload)(*inputs, **case.options)
        backward = getattr(OPS.token_discrepancy_backward, overload)
        return {"loss": loss, "lse": lse, "gradient": backward(case.grads[0], *inputs, loss, lse, **case.options)}
    options = {**case.options, **case.joint}
    rows = getattr(OPS.cross_entropy_discrepancy, overload)(*inputs, **options)
    backward = getattr(OPS.cross_entropy_discrepancy_backward, overload)
    names = ("cross_entropy", "discrepancy", "lse", "image_lse")
    return {**dict(zip(names, rows, strict=True)), "gradient": backward(*case.grads, *inputs, *rows[1:], **options)}


def softmax(x):
    """(p, logsumexp, log p) of a row."""
    if np.isneginf(x).all():
        return x * np.nan, -np.inf, x * np.nan
    e = np.exp(x - x.max())
    lse = x.max() + np.log(e.sum())
    return e / e.sum(), lse, x - lse


def all_distances(table, metric, offset, scale):
    table = table.double().numpy().astype(np.longdouble)
    if metric == 0:
        table = table * np.longdouble(scale) + np.longdouble(offset)
    else:
        squared = sum((column[:, None] - column[None, :]) ** 2 for column in table.T)
        table = np.sqrt(squared) if metric == 3 else squared / (table.shape[1] if metric == 1 else 1)
    np.fill_diagonal(table, 0.0)
    return table


def oracle(case):
    """The formulas of the contract, row by row, in extended precision."""
    D = all_distances(case.table, **{k: case.options[k] for k in ("metric", "offset", "scale")})
    N, start, V = len(D), case.options["image_start"], case.logits.shape[1]
    x = case.logits.double().numpy().astype(np.longdouble)
    rows = {name: np.zeros(len(x), np.longdouble) for name in ("cross_entropy", "loss", "lse", "image_lse")}
    gradient = np.zeros(x.shape, np.longdouble)
    grads = [grad.double().numpy().astype(np.longdouble) for grad in case.grads]
    for i, label in enumerate(case.labels.tolist()):
        if case.joint and label != case.joint["ignore_index"]:
            eps = np.longdouble(case.joint["label_smoothing"])
            p, rows["lse"][i], log_p = softmax(x[i] if 0 <= label < V else x[i] * np.nan)
            target = np.arange(V) == label
            smooth = eps * log_p.mean() if eps else 0.0
            rows["cross_entropy"][i] = -(1 - eps) * log_p[min(max(label, 0), V - 1)] - smooth
            gradient[i] = grads[0][i] * (p - (1 - eps) * target - eps / V)
        if start <= label < start + N:
            p, rows["image_lse"][i], _ = softmax(x[i, start : start + N])
            loss = rows["loss"][i] = (p * D[label - start]).sum()
            gradient[i, start : start + N] += grads[-1 if case.joint else 0][i] * p * (D[label - start] - loss)
    if case.joint:
        named = {"cross_entropy": rows["cross_entropy"], "discrepancy": rows["loss"], "lse": rows["lse"]}
        named |= {"image_lse": rows["image_lse"], "gradient": gradient}
    else:
        named = {"loss": rows["loss"], "lse": rows["image_lse"], "gradient": gradient}
    return {name: torch.from_numpy(value.astype(np.float64)) for name, value in named.items()}


def assert_right(case):
    """Both passes within the budget, and no element unwritten; returns the results."""
    logits = case.logits.clone()
    with poisoned_allocations():
        ours = run(case, "triton")
    eager, exact = run(case, "reference"), oracle(case)
    for name, result in ours.items():
        assert_within_budget(result, eager[name], exact[name], name)
    assert torch.equal(case.logits.nan_to_num(), logits.nan_to_num())
    return ours


STORED = [distance_table(101, metric, "table", dtype) for metric, dtype in zip(METRICS, (F16, BF16, F32), strict=True)]
STORED += [distance_table(101, metric, "codebook", dim=dim) for metric, dim in zip(METRICS, (5, 2, 33), strict=True)]
STORED += [distance_table(101, "euclidean", dtype=F64), distance_table(101, storage="codebook", dim=1)]
EACH_TABLE = pytest.mark.parametrize("table", STORED, ids=lambda t: f"{t.metric}-{t.storage}-{t.dtype}-{t.code_dim}")
JOINT = pytest.mark.parametrize(
    "joint",
    [{}, {"ignore_index": -100, "label_smoothing": 0.0}, {"ignore_index": -100, "label_smoothing": 0.1}],
    ids=["alone", "joint", "smoothed"],
)


TWO = pytest.mark.parametrize("joint", [{}, {"ignore_index": -100, "label_smoothing": 0.1}], ids=["alone", "smoothed"])


@TWO
@EACH_TABLE
@DTYPES
def test_values_and_gradients(dtype, table, joint):
    assert_right(make(4, dtype=dtype, table=table, **joint))


@JOINT
@DTYPES
def test_rows_of_many_blocks(dtype, joint, monkeypatch):
    small_blocks(monkeypatch)
    for table in (STORED[0], STORED[5]):
        assert_right(make(3, dtype=dtype, table=table, V=340, start=140, **joint))


@TWO
@DTYPES
def test_the_loss_is_right_to_one_rounding_as_gradients_are_differences_from_it(dtype, joint, blocks):
    case = make(4, dtype=dtype, table=STORED[2], **joint)
    loss, exact = (results["discrepancy" if joint else "loss"] for results in (run(case, "triton"), oracle(case)))
    assert (loss - exact).abs().max() <= torch.finfo(loss.dtype).eps * exact.max()


@JOINT
def test_a_code_is_at_distance_zero_from_itself_whatever_is_stored(joint, blocks):
    case = make(**joint)
    case.table = case.table.clone().fill_diagonal_(3.0)
    assert_right(case)


SIZES = [(1, 1, 1, 0), (3, 5, 1, 4), (3, 64, 64, 0), (4, 129, 65, 0), (4, 200, 128, 64), (4, 257, 130, 127), (3, 100, 63, 37)]


@JOINT
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size, joint, blocks):
    assert_right(make(*size, **joint))


@JOINT
def test_rows_of_the_usual_block(joint):
    table = distance_table(1100, "euclidean", "codebook", dim=3)
    assert_right(make(3, 2300, 1100, 700, BF16, table, **joint))


@JOINT
@DTYPES
@pytest.mark.parametrize("offset", [4, 31])
def test_slices_of_a_wider_parent_at_any_offset(dtype, offset, joint):
    case = make(3, dtype=dtype, start=offset % 5, **joint)
    wider = torch.zeros(3, 150 + 37, dtype=dtype)
    parent = wider[:, offset : offset + 150].copy_(case.logits)
    memory, labels = guarded(parent), guarded(torch.stack([case.labels] * 3, dim=1)[:, 1])
    case.logits, case.labels = memory.tensor, labels.tensor
    assert case.logits.stride() == (187, 1)
    assert case.labels.stride() == (3,)
    assert_right(case)
    memory.assert_untouched("logits")
    labels.assert_untouched("labels")


@JOINT
def test_rows_further_apart_than_32_bits(joint):
    case = make(3, 70, 33, dtype=F16, **joint)
    case.labels[2] = case.labels[1]
    case.logits = torch.empty(2**31 + 200, dtype=F16).as_strided((3, 70), (2**30 + 50, 1)).copy_(case.logits)
    assert_right(case)


@JOINT
@DTYPES
def test_skipped_rows_are_exactly_zero_whatever_they_hold(dtype, joint, blocks):
    case = make(dtype=dtype, V=180, **{**joint, "ignore_index": 0} if joint else {})
    skipped = torch.tensor([False, True, False, True, False, True])
    case.labels[skipped] = torch.tensor([0] * 3) if joint else torch.tensor([-100, 3, 105])
    case.logits[skipped] = NAN
    for grad in case.grads:
        grad[skipped] = NAN
    ours = assert_right(case)
    assert all((result[skipped] == 0).all() for result in ours.values())
    assert ours["gradient"][~skipped].any(dim=1)[[0, 2]].any()


def test_a_batch_without_image_tokens():
    case = make()
    case.labels[:] = torch.tensor([-100, 0, 3, 105, 149, 2**40])
    assert not any(result.any() for result in assert_right(case).values())


@JOINT
@DTYPES
def test_columns_of_minus_infinity(dtype, joint, blocks):
    case = make(dtype=dtype, **joint)
    case.logits[0, 4:80] = -INF
    case.logits[0, 4] = 1.0  # the target
    case.logits[1, 50] = -INF
    case.logits[3, 4:105] = -INF  # nothing is left
    case.logits[3, case.labels[3]] = -INF
    if not joint:  # a cross-entropy of 3e38 would leave no budget to speak of
        case.logits[4] = torch.finfo(dtype).min
    ours = assert_right(case)
    assert ours["gradient"][0, 5:80].ne(0).any() == bool(joint and joint["label_smoothing"])
    assert ours["loss" if not joint else "discrepancy"][3].isnan()


@JOINT
def test_nothing_but_minus_infinity(joint, blocks):
    case = make(**joint)
    case.logits[0] = -INF
    case.logits[2] = -INF
    assert_right(case)


@TWO
@DTYPES
def test_nan_stays_in_its_row(dtype, joint, blocks):
    case = make(dtype=dtype, **joint)
    case.logits[0, 77] = NAN
    case.logits[4, 1] = NAN  # a text column of an image row
    case.logits[5, 149] = INF
    ours = assert_right(case)
    assert ours["loss" if not joint else "discrepancy"][4].isfinite()
    assert ours["gradient"][[1, 3]].isfinite().all()


@TWO
@DTYPES
def test_a_common_offset_of_all_logits(dtype, joint, blocks):
    case = make(4, dtype=dtype, **joint)
    case.logits = (case.logits.double() + 1e4).to(dtype)
    assert_right(case)


@DTYPES
@pytest.mark.parametrize("above", [200.0, -200.0])
def test_text_far_above_or_below_the_image_columns(dtype, above, blocks):
    case = make(4, dtype=dtype, ignore_index=-100, label_smoothing=0.1)
    case.logits[:, 105:] += above
    assert_right(case)


@pytest.mark.parametrize("label", [-1, 150, -(2**40), 2**40])
def test_a_label_outside_the_vocabulary_makes_its_row_nan(label):
    case = make(ignore_index=-100, label_smoothing=0.1)
    case.labels[2:4] = torch.tensor([label, -100])
    ours = assert_right(case)
    assert ours["cross_entropy"][2].isnan()
    assert ours["gradient"][2].isnan().all()
    assert ours["gradient"][3].eq(0).all()


@pytest.mark.parametrize("ignored", [4, 50, 149])
def test_an_ignored_image_label_still_counts_for_the_discrepancy(ignored, blocks):
    case = make(ignore_index=ignored, label_smoothing=0.1)
    case.labels[:3] = torch.tensor([4, 50, 149])
    assert_right(case)


@TWO
@DTYPES
def test_expanded_and_strided_gradients(dtype, joint):
    case = make(dtype=dtype, **joint)
    wide = case.grads[0].dtype
    case.grads = [torch.tensor(0.7, dtype=wide).expand(6), torch.tensor(-2.0, dtype=wide).expand(6)]
    assert_right(case)
    case.grads = [floats((6, 3), wide, seed=11)[:, 1], floats((6, 5), wide, seed=12)[:, 4]]
    assert_right(case)


@JOINT
def test_no_rows(joint):
    ours = run(make(0, **joint), "triton")
    assert ours.pop("gradient").shape == (0, 150)
    assert all(result.shape == (0,) for result in ours.values())


@TWO
@DTYPES
@pytest.mark.parametrize("sizes", [(150, 101, 4), (131, 67, 64)], ids=str)
def test_nothing_is_written_beside_the_outputs(sizes, dtype, joint, monkeypatch):
    from ladderkern.discrepancy import kernels

    small_blocks(monkeypatch)
    made = []

    class Guarding:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, **options):
            made.append(guarded(torch.full(shape, NAN, **options)))
            return made[-1].tensor

    monkeypatch.setattr(kernels, "torch", Guarding())
    V, N, start = sizes
    case = make(3, V, N, start, dtype, **joint)
    ours = run(case, "triton")
    assert len(made) == len(ours)
    assert all(result.isfinite().all() for result in ours.values())
    for i, guard in enumerate(made):
        guard.assert_untouched(f"output {i}")


@JOINT
def test_autograd_twice_from_one_graph(joint):
    case = make(dtype=BF16, **joint)
    op = OPS.cross_entropy_discrepancy if joint else OPS.token_discrepancy
    logits = case.logits.clone().requires_grad_()
    results = op.triton(logits, case.labels, case.table, **case.options, **joint)[: 2 if joint else 1]
    for first, second in itertools.pairwise([floats((6,), seed=s) for s in (20, 21, 22)]):
        case.grads = [first, second]
        (gradient,) = torch.autograd.grad(results, logits, case.grads[: len(results)], retain_graph=True)
        assert torch.equal(gradient, run(case, "triton")["gradient"])


@pytest.mark.parametrize("storage", ["table", "codebook"])
@TWO
def test_opcheck(storage, joint):
    case = make(dtype=BF16, table=distance_table(33, storage=storage), N=33, V=50, **joint)
    inputs, options = (case.logits, case.labels, case.table), {**case.options, **joint}
    forward, backward = (
        (OPS.cross_entropy_discrepancy.triton, OPS.cross_entropy_discrepancy_backward.triton)
        if joint
        else (OPS.token_discrepancy.triton, OPS.token_discrepancy_backward.triton)
    )
    rows = forward(*inputs, **options)
    torch.library.opcheck(forward, (case.logits.clone().requires_grad_(), *inputs[1:]), options)
    torch.library.opcheck(backward, (*case.grads[: 2 if joint else 1], *inputs, *rows[1 if joint else 0 :]), options)


def test_bad_arguments_are_refused_by_name():
    case = make()
    with pytest.raises(TypeError, match="labels"):
        OPS.token_discrepancy.triton(case.logits, case.labels.int(), case.table, **case.options)
    with pytest.raises(ValueError, match="image_start"):
        OPS.token_discrepancy.triton(case.logits, case.labels, case.table, **{**case.options, "image_start": 60})
    rows = (case.grads[0], case.grads[0])
    with pytest.raises(ValueError, match="grad_output"):
        OPS.token_discrepancy_backward.triton(case.grads[0][:3], case.logits, case.labels, case.table, *rows, **case.options)
