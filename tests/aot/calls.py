"""What users call, with the shapes of real models: each call launches the kernels of one op and of its backward.

Tensors are allocated and never written: only dtypes, sizes and addresses decide what is compiled.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ladderkern.discrepancy import kernels as discrepancy
from ladderkern.discrepancy.reference import METRICS, TABLE
from ladderkern.ladder import kernels as ladder
from ladderkern.prm import kernels as prm
from ladderkern.spam import kernels as spam
from ladderkern.spam.checks import compact_shape

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
SHORT = {F32: "f32", BF16: "bf16", F16: "f16", F64: "f64"}


class Call(NamedTuple):
    """A call, and what is to be seen in its kernels.

    Attributes:
        wide: of a kernel, the dtypes of what its lanes (load, store) of each column in as few accesses as 16 bytes allow.
        double: whether float64 instructions belong into its kernels.
    """

    run: Callable[[], Any]
    wide: dict[str, tuple[list[torch.dtype], list[torch.dtype]]]
    double: bool


def empty(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return F64 if dtype == F64 else F32


# ------------------------------------------------------------------------------------------------------------------- ladder


def norm(dtype, hidden, *, addends=1, weights=1, weight_dtype=None, rows=4096):
    """Residual addition and norm of prefill's rows; the norm alone with no addend and one weight."""
    weight_dtype = weight_dtype or dtype
    x, weight = empty(rows, hidden, dtype=dtype), empty(hidden, dtype=weight_dtype)
    grad, rstd = empty(rows, hidden, dtype=torch.promote_types(dtype, weight_dtype)), empty(rows, dtype=arithmetic(dtype))
    options = {"eps": 1e-6, "round_sum": True}
    if addends == 0 and weights == 1:
        ladder.rms_norm(x, weight, **options)
        ladder.rms_norm_backward(grad, x, weight, rstd)
        return
    update, update2 = x if addends > 0 else None, x if addends > 1 else None
    weight2 = weight if weights > 1 else None
    ladder.add_rms_norm(x, update, update2, weight, weight2, **options)
    ladder.add_rms_norm_backward(grad, grad, x, x, weight, weight2, rstd)


def norm_call(dtype, hidden, *, addends=1, weights=1, weight_dtype=None):
    weight_dtype = weight_dtype or dtype
    normed, weight = [torch.promote_types(dtype, weight_dtype)] * weights, [weight_dtype] * weights
    stream = [] if addends == 0 and weights == 1 else [dtype]
    wide = {
        "_rms_norm_fwd": ([dtype] * (1 + addends) + weight, stream + normed),
        "_rms_norm_bwd": ([dtype, *stream, *normed, *weight], [dtype] + [arithmetic(dtype)] * weights),
    }
    run = partial(norm, dtype, hidden, addends=addends, weights=weights, weight_dtype=weight_dtype)
    return Call(run, wide, dtype == F64)


# ---------------------------------------------------------------------------------------------------------------------- PRM


def scores(dtype, steps, responses, *, classes=2, probabilities=False, weighted=False, masked=False):
    """Scores of steps, aggregates of responses, and the backward."""
    wide = arithmetic(dtype)
    x, offsets = empty(steps, classes, dtype=dtype), empty(responses + 1, dtype=torch.int64)
    mask = empty(steps, dtype=torch.bool) if masked else None
    weights = empty(classes, dtype=wide) if weighted else None
    options = {"positive": classes - 1, "probabilities": probabilities, "threshold": 0.5, "strict": False}
    outputs = prm.prm_scores(x, offsets, mask, weights, **options)
    grads = empty(3, steps, dtype=wide), empty(11, responses, dtype=wide)
    prm.prm_scores_backward(*grads, x, offsets, mask, weights, *outputs[:3], **options)


def scores_call(dtype, steps, responses, **options):
    """Lanes hold one step each: nothing is 16 bytes wide."""
    return Call(partial(scores, dtype, steps, responses, **options), {}, dtype == F64)


# -------------------------------------------------------------------------------------------------------------- discrepancy


def logits_of(dtype, columns, codes, codebook, start):
    table = empty(codes, codes, dtype=F16) if codebook is None else empty(codes, codebook)
    options = {"image_start": start, "metric": TABLE if codebook is None else METRICS["mse"], "offset": 1.0, "scale": 0.5}
    return empty(16, columns, dtype=dtype), empty(16, dtype=torch.int64), table, options


def loss(dtype, columns, codes, *, codebook=None, start=4):
    """Discrepancy alone. ``codebook``: the dimension of its entries, None for a 16-bit table."""
    logits, labels, table, options = logits_of(dtype, columns, codes, codebook, start)
    saved = discrepancy.token_discrepancy(logits, labels, table, **options)
    grad = empty(16, dtype=arithmetic(dtype))
    discrepancy.token_discrepancy_backward(grad, logits, labels, table, *saved, **options)


def joint(dtype, columns, codes, *, codebook=None, start=4, smoothing=0.0):
    """Cross-entropy and discrepancy of one pass."""
    logits, labels, table, options = logits_of(dtype, columns, codes, codebook, start)
    options |= {"ignore_index": -100, "label_smoothing": smoothing}
    saved = discrepancy.cross_entropy_discrepancy(logits, labels, table, **options)
    grad = empty(16, dtype=arithmetic(dtype))
    discrepancy.cross_entropy_discrepancy_backward(grad, grad, logits, labels, table, *saved[1:], **options)


def loss_call(dtype, columns, codes, *, codebook=None, start=4):
    """Image columns may start at no multiple of 16 bytes; zeros are stored in whole blocks."""
    x = [dtype] if start * dtype.itemsize % 16 == 0 else []
    distances = [F16] if codebook is None else []
    wide = {"_discrepancy_fwd": (x + distances, []), "_discrepancy_bwd": (x + distances, [dtype])}
    return Call(partial(loss, dtype, columns, codes, codebook=codebook, start=start), wide, dtype == F64)


def joint_call(dtype, columns, codes, *, codebook=None, start=4, smoothing=0.0):
    wide = {"_joint_fwd": ([dtype], []), "_joint_bwd": ([dtype], [dtype])}
    run = partial(joint, dtype, columns, codes, codebook=codebook, start=start, smoothing=smoothing)
    return Call(run, wide, dtype == F64)


# --------------------------------------------------------------------------------------------------------------------- SPAM

HYPER = {
    "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0, "threshold": 5000.0, "reset_interval": 500,
    "warmup_steps": 150, "unclipped_steps": 20, "cycle_correction": False, "freeze_zero_variance": False,
    "maximize": False, "seed": 0,
}  # fmt: skip
STATES = [(F32, F32, F32), (BF16, BF16, F32), (BF16, BF16, BF16), (F32, BF16, F32), (F16, F16, F32), (F64, F64, F64)]
MASKS = {"dense": (16, False), "element": (4, False), "row": (4, True)}


def step(param, grad, moments, mask, *, amp=False):
    """One step of three matrices."""
    density, row_mask = MASKS[mask]
    shapes = [(4096, 4096), (1024, 4096), (4096, 1024)]
    p, g = ([empty(*shape, dtype=dtype) for shape in shapes] for dtype in (param, grad))
    m, v = ([empty(*compact_shape(s, density, row_mask), dtype=moments) for s in shapes] for _ in range(2))
    extra = {"grad_scale": torch.ones(()), "found_inf": torch.zeros(())} if amp else {}
    spam.spam_step_(
        p, g, m, v, [torch.zeros(()) for _ in shapes], torch.tensor(1e-3, dtype=F64), indices=[0, 1, 2], placement=[],
        **HYPER, density_16ths=density, row_mask=row_mask, **extra,
    )  # fmt: skip


def step_call(param, grad, moments, mask, *, amp=False):
    """With an element mask gradients are loaded, and moments loaded and stored, where they are drawn: one by one."""
    both = [] if mask == "element" else [moments, moments]
    loads = [param, *([grad] if amp or mask != "element" else []), *both]
    wide = {"_spam_step": (loads, [param, *both, *([grad] if amp else [])])}
    return Call(partial(step, param, grad, moments, mask, amp=amp), wide, param == F64)


# ---------------------------------------------------------------------------------------------------------------- all of them


def every_call() -> dict[str, Call]:
    """All calls by name."""
    calls = {}
    for dtype, short in SHORT.items():
        calls[f"add_rms_norm {short} 4096"] = norm_call(dtype, 4096)
        calls[f"rms_norm {short} 8192"] = norm_call(dtype, 8192, addends=0)
        calls[f"add_rms_norm {short} 8192, 2 addends, 2 weights"] = norm_call(dtype, 8192, addends=2, weights=2)
        calls[f"prm_scores {short} pairs"] = scores_call(dtype, 25697, 3400)
        calls[f"prm_scores {short} probabilities, masked"] = scores_call(
            dtype, 6144, 512, classes=1, probabilities=True, masked=True
        )
        calls[f"discrepancy {short} 65536/8192 table"] = loss_call(dtype, 65536, 8192)
        calls[f"discrepancy {short} 8448/1024 codebook"] = loss_call(dtype, 8448, 1024, codebook=8, start=256)
        calls[f"cross_entropy {short} 65536/8192 table"] = joint_call(dtype, 65536, 8192)
        calls[f"cross_entropy {short} 8448/1024 codebook, smoothed"] = joint_call(
            dtype, 8448, 1024, codebook=8, start=256, smoothing=0.1
        )
    calls["add_rms_norm bf16 4096, float32 weight"] = norm_call(BF16, 4096, weight_dtype=F32)
    calls["add_rms_norm bf16 896"] = norm_call(BF16, 896)
    calls["add_rms_norm bf16 28672"] = norm_call(BF16, 28672)
    calls["prm_scores bf16 logits, one response"] = scores_call(BF16, 100_000, 1, classes=1)
    calls["prm_scores bf16 5 classes"] = scores_call(BF16, 25697, 3400, classes=5)
    calls["prm_scores bf16 4 classes, weighted, masked"] = scores_call(BF16, 25697, 3400, classes=4, weighted=True, masked=True)
    for mask in MASKS:
        for dtypes in STATES:
            calls[f"spam_step {'/'.join(SHORT[d] for d in dtypes)} {mask}"] = step_call(*dtypes, mask)
        calls[f"spam_step f16/f16/f32 {mask}, scaled gradients"] = step_call(F16, F16, F32, mask, amp=True)
    return calls
