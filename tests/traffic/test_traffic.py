"""Bytes that the Triton kernels move, counted in the interpreter, against the least possible."""

import pytest
import torch

from ladderkern.discrepancy.ops import (
    CROSS_ENTROPY_DISCREPANCY,
    CROSS_ENTROPY_DISCREPANCY_BACKWARD,
    TOKEN_DISCREPANCY,
    TOKEN_DISCREPANCY_BACKWARD,
)
from ladderkern.spam.checks import compact_shape
from ladderkern.testing import counted_traffic, floats, work

pytestmark = pytest.mark.interpreter

OPS = torch.ops.ladderkern
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
HEADING = ("kernel", "case", "least bytes", "counted", "ratio", "read again", "in 32-byte sectors")
WHOLE, MASKED = 1.02, 1.05  # what launches may move over the least possible; where a mask takes out elements


@pytest.fixture
def audit(request, table_row):
    """Runs a call and holds each of its launches to the least work of its kernel: {kernel: Work}, in order of the launches."""

    def run(call, least, limit=WHOLE, shared=()):
        with counted_traffic(shared) as launches:
            call()
        assert [launch.kernel for launch in launches] == list(least)
        ratios = {}
        for launch, of_kernel in zip(launches, least.values(), strict=True):
            counted = launch.loaded + launch.stored
            ratios[launch.kernel] = counted / of_kernel.bytes
            table_row(
                "Memory traffic of the Triton kernels",
                HEADING,
                (
                    launch.kernel, request.node.name.removeprefix("test_"), of_kernel.bytes, counted,
                    f"{ratios[launch.kernel]:.4f}", launch.reloaded, f"{launch.moved / of_kernel.bytes:.3f}",
                ),
            )  # fmt: skip
            assert launch.stored >= of_kernel.stores, f"{launch.kernel} wrote less than its outputs"
        assert all(1.0 <= ratio <= limit for ratio in ratios.values()), ratios

    return run


# --------------------------------------------------------------------------------------------------------------------- SPAM

HYPER = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "threshold": 50.0, "reset_interval": 5,
    "warmup_steps": 3, "unclipped_steps": 2, "cycle_correction": False, "freeze_zero_variance": False, "maximize": False,
    "seed": 0,
}  # fmt: skip
MASKS = {"dense": (16, False), "element": (4, False), "row": (4, True)}
SHAPES = [(48, 256), (16, 64)]
SPAM_SHARED = ("p_table", "p_combinations", "p_found_inf", "p_grad_scale")


def spam(param, grad, moments, mask, before=3.0, scaled=False, **hyper):
    density, row_mask = MASKS[mask]
    held = [compact_shape(shape, density, row_mask) for shape in SHAPES]
    p, g = ([floats(shape, dtype) for shape in SHAPES] for dtype in (param, grad))
    m, v = ([floats(shape, moments).abs() for shape in held] for _ in range(2))
    extra = {"grad_scale": torch.tensor(2.0), "found_inf": torch.tensor(0.0)} if scaled else {}
    OPS.spam_step_.triton(
        p, g, m, v, [torch.tensor(before) for _ in SHAPES], torch.tensor(0.01, dtype=F64), indices=[0, 1], placement=[],
        **{**HYPER, **hyper}, density_16ths=density, row_mask=row_mask, **extra,
    )  # fmt: skip


@pytest.mark.parametrize("case", ["usual", "restart", "decay", "scaled"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, BF16, F32), (BF16, BF16, BF16), (F64, F64, F64)], ids=str)
def test_spam_step(dtypes, mask, case, audit):
    options = {
        "usual": {}, "restart": {"before": 4.0}, "decay": {"weight_decay": 0.1}, "scaled": {"scaled": True}
    }[case]  # fmt: skip
    least = work.spam_step(
        sum(rows * columns for rows, columns in SHAPES), *dtypes, density=MASKS[mask][0] / 16, row_mask=mask == "row",
        restart=case == "restart", decay=case == "decay", scaled=case == "scaled",
    )  # fmt: skip
    limit = WHOLE if mask == "dense" else MASKED
    audit(lambda: spam(*dtypes, mask, **options), {"_spam_step": least}, limit, SPAM_SHARED)


# ------------------------------------------------------------------------------------------------------------------- ladder

ROWS = 3
NORM_SHARED = ("p_weight", "p_weight2")


@pytest.mark.parametrize("hidden", [256, 20480])
@pytest.mark.parametrize(("addends", "weights"), [(0, 1), (1, 1), (2, 2)])
@DTYPES
def test_rms_norm_forward(dtype, addends, weights, hidden, audit):
    x, weight = floats((ROWS, hidden), dtype), floats((hidden,), dtype)
    alone = addends == 0
    least = work.norm_forward(ROWS, hidden, dtype, dtype, addends=addends, weights=weights, stream=not alone)
    options = {"eps": 1e-6, "round_sum": True}
    rest = (floats((ROWS, hidden), dtype) if addends > 1 else None, weight, weight.clone() if weights > 1 else None)

    def call():
        if alone:
            OPS.rms_norm.triton(x, weight, **options)
        else:
            OPS.add_rms_norm.triton(x, floats((ROWS, hidden), dtype, seed=1), *rest, **options)

    audit(call, {"_rms_norm_fwd": least}, shared=NORM_SHARED)


@pytest.mark.parametrize("hidden", [256, 20480])
@pytest.mark.parametrize(("alone", "weights"), [(True, 1), (False, 1), (False, 2)])
@DTYPES
def test_rms_norm_backward(dtype, alone, weights, hidden, audit):
    """Here a program has one row, so its partial weight gradients are as many as the elements: the next test counts them."""
    tensors = [floats((ROWS, hidden), dtype, seed=i) for i in range(4)]
    weight, rstd = floats((hidden,), dtype), floats((ROWS,), F64 if dtype == F64 else F32)
    backward = work.norm_backward(ROWS, hidden, dtype, dtype, weights=weights, stream=not alone)
    sums = work.partial_sums(ROWS, hidden, dtype, dtype, weights=weights)

    def call():
        if alone:
            OPS.rms_norm_backward.triton(tensors[0], tensors[1], weight, rstd)
        else:
            second = weight.clone() if weights > 1 else None
            OPS.add_rms_norm_backward.triton(*tensors, weight, second, rstd)

    least = {"_rms_norm_bwd": backward._replace(stores=backward.stores + sums.loads), "_sum_partials": sums}
    audit(call, least, shared=NORM_SHARED)


@pytest.mark.parametrize("hidden", [2048, 4096, 8192])
def test_partial_weight_gradients_are_few_beside_the_rows_of_training(hidden):
    """Programs enough to fill a device have partial sums of their own, written and read: a share that falls with the rows."""
    from ladderkern.ladder import kernels

    rows = 32768
    blocks = kernels._backward_blocks(hidden, BF16, 1)
    programs = -(-rows // kernels._row_block(rows, hidden > blocks["BLOCK"], blocks["num_warps"]))
    sums = work.partial_sums(programs, hidden, BF16, BF16)
    assert sums.loads + sums.bytes <= (WHOLE - 1) * work.norm_backward(rows, hidden, BF16, BF16).bytes


# ---------------------------------------------------------------------------------------------------------------------- PRM

LENGTHS = (3, 0, 25, 1, 9, 70) * 8


@pytest.mark.parametrize("masked", [False, True], ids=["all steps", "masked"])
@pytest.mark.parametrize("classes", [1, 2])
@DTYPES
def test_prm_scores(dtype, classes, masked, audit):
    S, R, wide = sum(LENGTHS), len(LENGTHS), F64 if dtype == F64 else F32
    scores = floats((S, classes), dtype)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    mask = torch.rand(S, generator=torch.Generator().manual_seed(0)) < 0.7 if masked else None
    options = {"positive": classes - 1, "probabilities": False, "threshold": 0.5, "strict": False}

    def call():
        outputs = OPS.prm_scores.triton(scores, offsets, mask, None, **options)
        grads = floats((3, S), wide), floats((11, R), wide)
        OPS.prm_scores_backward.triton(*grads, scores, offsets, mask, None, *outputs[:3], **options)

    size = (S, R, classes, dtype)
    out = None if mask is None else int((~mask).sum())
    least = {"_prm_scores_fwd": work.prm_forward(*size, masked=out), "_prm_scores_bwd": work.prm_backward(*size, masked=out)}
    audit(call, least, MASKED if masked else WHOLE)


# -------------------------------------------------------------------------------------------------------------- discrepancy

COLUMNS, CODES, START, DIM = 3200, 2048, 4, 8
CODEBOOK = pytest.mark.parametrize("codebook", [False, True], ids=["table", "codebook"])


def logits_of(dtype, codebook, image, text, skipped):
    labels = torch.tensor([START, START + CODES - 1, *range(START + 7, START + 5 + image), *[0] * text, *[-100] * skipped])
    table = floats((CODES, DIM if codebook else CODES), F32 if codebook else F16)
    options = {"image_start": START, "metric": 1 if codebook else 0, "offset": 1.0, "scale": 0.5}
    return floats((len(labels), COLUMNS), dtype), labels, table, options


def read_once(of_kernel, codebook):
    """A codebook that all rows share is read once."""
    return of_kernel._replace(loads=of_kernel.loads + CODES * DIM * 4) if codebook else of_kernel


@CODEBOOK
@DTYPES
def test_token_discrepancy(dtype, codebook, audit):
    logits, labels, table, options = logits_of(dtype, codebook, image=5, text=2, skipped=0)
    grad = floats((len(labels),), F64 if dtype == F64 else F32)

    def call():
        saved = TOKEN_DISCREPANCY.triton(logits, labels, table, **options)
        TOKEN_DISCREPANCY_BACKWARD.triton(grad, logits, labels, table, *saved, **options)

    rows, width = work.Rows(len(labels), 5), 0 if codebook else 2
    forward = work.discrepancy_forward(rows, CODES, dtype, table=width)
    backward = work.discrepancy_backward(rows, COLUMNS, CODES, dtype, table=width)
    least = {"_discrepancy_fwd": read_once(forward, codebook), "_discrepancy_bwd": read_once(backward, codebook)}
    audit(call, least, shared=("p_table",) if codebook else ())


@pytest.mark.parametrize("skipped", [0, 3], ids=["all rows", "masked rows"])
@CODEBOOK
@DTYPES
def test_cross_entropy_discrepancy(dtype, codebook, skipped, audit):
    logits, labels, table, options = logits_of(dtype, codebook, image=4, text=2, skipped=skipped)
    options |= {"ignore_index": -100, "label_smoothing": 0.1}
    grads = [floats((len(labels),), F64 if dtype == F64 else F32) for _ in range(2)]

    def call():
        saved = CROSS_ENTROPY_DISCREPANCY.triton(logits, labels, table, **options)
        CROSS_ENTROPY_DISCREPANCY_BACKWARD.triton(*grads, logits, labels, table, *saved[1:], **options)

    size = (work.Rows(len(labels), 4, skipped), COLUMNS, CODES, dtype)
    width = 0 if codebook else 2
    least = {
        "_joint_fwd": read_once(work.joint_forward(*size, table=width), codebook),
        "_joint_bwd": read_once(work.joint_backward(*size, table=width), codebook),
    }
    audit(call, least, MASKED if skipped else WHOLE, shared=("p_table",) if codebook else ())
