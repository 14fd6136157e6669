"""The emulated CUDA kernels with the signatures of the ops, and the tests of other backends, to be run on them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ladderkern.runtime.launch import stand_ins
from ladderkern.spam.ops import check_step

TESTS = Path(__file__).parents[1]
SANITIZED = os.environ.get("LADDERKERN_EMULATION") == "sanitized"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]  # csrc/cpu/dtype.h


def built(name: str) -> Path | None:
    """A test module that was compiled."""
    return next(iter(sorted((TESTS.parent / "build" / "tests").glob(f"{name}.*so"))), None)


def load_module():
    """The compiled module: LADDERKERN_EMULATION=sanitized picks the one that is built with AddressSanitizer and UBSan."""
    name = "ladderkern_emulation" + ("_sanitized" if SANITIZED else "")
    path = built(name)
    if path is None:
        pytest.skip(f"{name} is not built (LADDERKERN_BUILD_TESTS=1)", allow_module_level=True)
    return import_file(name, path)


def import_file(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def triton_tests(feature: str):
    """A copy of tests/<feature>/test_triton.py: its inputs, oracle and budgets are those of every backend."""
    sys.path.insert(0, str(TESTS / feature))  # its neighbours
    return import_file(f"emulated_{feature}", TESTS / feature / "test_triton.py")


def tests_of(suite, *left_out: str) -> dict:
    """Its tests but those named; each name must exist."""
    tests = {name: item for name, item in vars(suite).items() if name.startswith("test_")}
    for name in left_out:
        del tests[name]
    return tests


MODULE = load_module()


def memory(tensor: torch.Tensor) -> np.ndarray:
    """The bytes from a tensor's first element to its last, strides and gaps included."""
    if not tensor.numel():
        return np.empty(0, np.uint8)
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((span,), (1,)).view(torch.uint8).numpy()


def maybe(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else memory(tensor)


def code(tensor: torch.Tensor) -> int:
    return DTYPES.index(tensor.dtype)


# ------------------------------------------------------------------------------------------------------------------- spam

DENSE, ELEMENT, ROW = range(3)


def spam_step_(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, *, indices, placement, grad_scale=None, found_inf=None, lr_on_device=False,
    **hyper,
) -> int:  # fmt: skip
    """The op ``spam_step_``; returns the number of launches. ``lr_on_device``: the kernel reads lr."""
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    check_step(*lists, lr, indices=indices, placement=placement, grad_scale=grad_scale, found_inf=found_inf, **hyper)
    buckets, copies = {}, []
    for i, tensors in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        p, g, m, v = stand_ins(tensors, (True, grad_scale is not None, True, True), copies)
        mask = DENSE if m.shape == p.shape else ROW if hyper["row_mask"] else ELEMENT
        where = placement[4 * i : 4 * i + 4] or (p.numel(), p.numel(), 0, 0)
        row_length = p.numel() // p.shape[0] if p.dim() and p.shape[0] else p.numel()
        tensor = (
            *(memory(t) for t in (p, g, m, v, steps[i])), [code(p), code(g), code(m)], [p.numel(), row_length],
            [max(where[0], 1), *where[1:]], indices[i],
        )  # fmt: skip
        buckets.setdefault((mask, p.dtype == torch.float64), []).append(tensor)
    numbers = 0.0 if lr_on_device else lr.item(), maybe(lr) if lr_on_device else None, maybe(grad_scale), maybe(found_inf)
    launches = 0
    for (mask, wide), tensors in buckets.items():
        launches += MODULE.spam_step(mask, wide, tensors, [], *numbers, hyper)
    launches += MODULE.spam_step(DENSE, False, [], [memory(step) for step in steps], *numbers, hyper)
    for original, copy in copies:
        original.copy_(copy)
    return launches


# ------------------------------------------------------------------------------------------------------------------- norms

NORM_PLAN = {"threads": 0, "block_rows": 0}  # 0: as the launcher takes them


def rows_of(tensor):
    return None if tensor is None else (memory(tensor), tensor.stride(0))


def _forward(x, update, update2, weight, weight2, eps, round_sum, keep_stream):
    rows, hidden = x.shape
    normed = torch.empty((rows, hidden), dtype=torch.promote_types(x.dtype, weight.dtype))
    normed2 = None if weight2 is None else torch.empty_like(normed)
    stream = torch.empty((rows, hidden), dtype=x.dtype) if keep_stream else None
    rstd = torch.empty((rows,), dtype=torch.promote_types(x.dtype, torch.float32))
    if rows:
        MODULE.norm_forward(
            code(x), code(weight), normed.dtype != x.dtype, rows, hidden, eps, round_sum,
            [rows_of(t) for t in (x, update, update2, normed, normed2, stream)], [maybe(weight), maybe(weight2)],
            memory(rstd), NORM_PLAN["threads"],
        )  # fmt: skip
    return normed, normed2, stream, rstd


def _backward(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd):
    rows, hidden = stream.shape
    grad_x = torch.empty((rows, hidden), dtype=stream.dtype)
    if not rows:
        return grad_x, torch.zeros_like(weight), None if weight2 is None else torch.zeros_like(weight)
    grad_weight, grad_weight2 = torch.empty_like(weight), None if weight2 is None else torch.empty_like(weight)
    MODULE.norm_backward(
        code(stream), code(weight), grad_normed.dtype != stream.dtype, rows, hidden,
        [rows_of(t) for t in (grad_normed, None if weight2 is None else grad_normed2, grad_stream, stream, grad_x)],
        [maybe(weight), maybe(weight2)], [maybe(grad_weight), maybe(grad_weight2)], memory(rstd), *NORM_PLAN.values(),
    )  # fmt: skip
    return grad_x, grad_weight, grad_weight2


def add_rms_norm(x, update, update2, weight, weight2, *, eps, round_sum):
    """The op ``add_rms_norm``."""
    normed, normed2, stream, rstd = _forward(x, update, update2, weight, weight2, eps, round_sum, True)
    return normed, normed.new_empty((0,)) if normed2 is None else normed2, stream, rstd


def add_rms_norm_backward(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd):
    """The op ``add_rms_norm_backward``."""
    grad_x, *grads = _backward(grad_normed, grad_normed2, grad_stream, stream, weight, weight2, rstd)
    return grad_x, grads[0], grads[0].new_empty((0,)) if grads[1] is None else grads[1]


def rms_norm(x, weight, *, eps, round_sum):
    """The op ``rms_norm``."""
    normed, _, _, rstd = _forward(x, None, None, weight, None, eps, round_sum, False)
    return normed, rstd


def rms_norm_backward(grad_normed, x, weight, rstd):
    """The op ``rms_norm_backward``."""
    return _backward(grad_normed, None, None, x, weight, None, rstd)[:2]


# ------------------------------------------------------------------------------------------------------------- step scores

PRM_WHOLE_BLOCKS = -1  # a block a response (1) or a warp (0); -1: as the launcher decides


def prm_scores(scores, offsets, mask, class_weights, *, positive, threshold, strict, probabilities):
    """The op ``prm_scores``."""
    S, R, wide = scores.shape[0], offsets.shape[0] - 1, torch.promote_types(scores.dtype, torch.float32)
    outputs = (
        torch.empty((3, S), dtype=wide),
        torch.empty((11, R), dtype=wide),
        torch.empty((4, R), dtype=torch.int64),
        torch.empty((R,), dtype=torch.bool),
    )
    if S or R:
        small = [None if t is None else memory(t.contiguous()) for t in (offsets, mask, class_weights)]
        MODULE.prm_forward(
            code(scores), memory(scores), [S, scores.shape[1], R], list(scores.stride()), *small,
            positive, threshold, strict, probabilities, [memory(t) for t in outputs], PRM_WHOLE_BLOCKS,
        )  # fmt: skip
    return outputs


class Overloads:
    """An op's overloads for tests that are written for Triton: ``.triton`` is what is emulated."""

    def __init__(self, op, emulated):
        self.reference, self.triton = op.reference, emulated
