"""The SPAM step in Triton: one launch for all tensors of one combination of dtypes and kind of mask."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..runtime.launch import Recent, TableCache, double_bits, on_device, power_of_two, signed_word, stand_ins, walk_together
from .ops import check_step
from .reference import STRATUM, Hyper, _log
from .step_kernels import DENSE, ELEMENT, ROW, _spam_step

TABLES = TableCache()
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float64: tl.float64}


@dataclass(eq=False)  # one is its own key in the cache of tables
class _Bucket:
    """The tensors of one launch: addresses, sizes and places, a row each."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]  # of parameters, gradients and moments
    mask: int
    rows: list[tuple[int, ...]]


_plans = Recent()  # the buckets of a step, by its fingerprint


def spam_step_(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, *, indices, placement, grad_scale=None, found_inf=None, **hyper
) -> None:
    """The op ``spam_step_`` (see ``ops.py``): one launch for each combination of device, dtypes and kind of mask."""
    rules = Hyper(**hyper)
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    copies: list[tuple[Tensor, Tensor]] = []
    alive: list[list[Tensor]] = []  # rows hold addresses alone
    unscales = grad_scale is not None
    key = _fingerprint(lists, indices, placement, rules.density_16ths, rules.row_mask, unscales, lr.numel())
    buckets = _plans.get(key)
    if buckets is None:
        check_step(*lists, lr, indices=indices, placement=placement, grad_scale=grad_scale, found_inf=found_inf, **hyper)
        buckets = _plan(lists, indices, placement, rules.row_mask, unscales, copies, alive)
        if key and not alive:  # else the next step's copies lie elsewhere
            _plans.put(key, buckets)
    for bucket in buckets:
        with on_device(bucket.device):
            _launch(bucket, lr, rules, grad_scale, found_inf)
    for original, copy in copies:
        original.copy_(copy)
    _advance(steps, found_inf)


def _fingerprint(lists: tuple[list[Tensor], ...], indices: list[int], placement: list[int], *rules: Any) -> Any:
    """All that the check and the plan of a step depend on; None for tensors without memory, which the check refuses."""
    tensors = list(itertools.chain(*lists))
    try:
        contiguous = all(map(Tensor.is_contiguous, tensors))
        return (
            tuple(map(len, lists)),
            tuple(map(Tensor.data_ptr, tensors)),
            tuple([t.dtype for t in tensors]),
            tuple(map(Tensor.get_device, tensors)),
            tuple([t.shape for t in tensors]),
            None if contiguous else tuple(map(Tensor.stride, tensors)),
            tuple(indices),
            tuple(placement),
            *rules,
        )
    except RuntimeError:  # of a layout without one address
        return None


def _plan(
    lists: tuple[list[Tensor], ...],
    indices: list[int],
    placement: list[int],
    row_mask: bool,
    unscales: bool,
    copies: list[tuple[Tensor, Tensor]],
    alive: list[list[Tensor]],
) -> list[_Bucket]:
    """The launches of a step. Stand-ins of tensors that cannot be walked go to ``alive``, what to copy back to ``copies``."""
    buckets: dict[Any, _Bucket] = {}
    for i, (p, g, m, v, step) in enumerate(zip(*lists, strict=True)):
        if p.numel() == 0:
            continue
        mask = DENSE if m.shape == p.shape else ROW if row_mask else ELEMENT
        tensors = [p, g, m, v]
        if not walk_together(tensors) or not (p.is_contiguous() or (mask == DENSE and m.dtype != torch.bfloat16)):
            tensors = stand_ins(tensors, (True, unscales, True, True), copies)
            alive.append(tensors)
        where = tuple(placement[4 * i : 4 * i + 4]) or (p.numel(), p.numel(), 0, 0)
        length = p.numel() // p.shape[0] if mask == ROW else p.numel()
        row = (*(t.data_ptr() for t in (*tensors, step)), p.numel(), length, max(where[0], 1), *where[1:], indices[i])
        kind = (p.device, (p.dtype, g.dtype, m.dtype), mask.value)
        buckets.setdefault(kind, _Bucket(*kind, [])).rows.append(row)
    return list(buckets.values())


def _make_table(rows: list[tuple[int, ...]]) -> tuple[Tensor, tuple[int, int]]:
    """The table that the kernel reads, [14, n_tensors] int64, and (blocks, block size). A row: see ``_plan``."""
    block = power_of_two(max(row[6] for row in rows), 64, 1024)
    lines, blocks = [], 0
    for row in rows:
        lines.append((blocks, *row, all(n % 16 == 0 for n in (*row[:4], row[6]))))
        blocks += row[5] // row[6] * -(-row[6] // block)
    return torch.tensor(lines, dtype=torch.int64).t().contiguous(), (blocks, block)


def _combinations(chosen: int) -> tuple[Tensor, None]:
    """The 16-bit masks with ``chosen`` bits, in lexicographic order of the drawn positions."""
    masks = [sum(1 << i for i in drawn) for drawn in itertools.combinations(range(STRATUM), chosen)]
    return torch.tensor(masks, dtype=torch.uint16), None


def _launch(bucket: _Bucket, lr, rules: Hyper, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    """One launch for the tensors of one bucket."""
    device, dtypes, mask = bucket.device, bucket.dtypes, bucket.mask
    table = TABLES.get(bucket, device, lambda: _make_table(bucket.rows))
    blocks, block = table.plan
    chosen = rules.density_16ths
    combinations = None if mask == DENSE.value else TABLES.get(chosen, device, lambda: _combinations(chosen)).data
    # A number that the host holds is passed; one that a device holds, or may change before a graph replays, is read there.
    on_host = lr.device.type == "cpu" and (device.type != "cpu" or lr.dtype == torch.float64)
    value = lr.item() if on_host else 0.0
    scalars = (
        value, 1.0 - value * rules.weight_decay, rules.weight_decay,
        rules.beta1, 1.0 - rules.beta1, _log(rules.beta1), rules.beta2, 1.0 - rules.beta2, _log(rules.beta2),
        rules.eps, rules.threshold, 0.5 * math.pi / (rules.warmup_steps + 1),
    )  # fmt: skip
    _spam_step[(blocks,)](
        table.data,
        combinations,
        None if on_host else lr.to(device),
        None if found_inf is None else found_inf.to(device),
        None if grad_scale is None else grad_scale.to(device),
        len(bucket.rows),
        len(bucket.rows).bit_length(),
        *(double_bits(x) for x in scalars) if dtypes[0] == torch.float64 else scalars,
        rules.reset_interval,
        rules.warmup_steps,
        rules.unclipped_steps,
        chosen,
        math.comb(STRATUM, chosen),
        signed_word(rules.seed),
        signed_word(rules.seed >> 32),
        P=_TYPES[dtypes[0]],
        G=_TYPES[dtypes[1]],
        M=_TYPES[dtypes[2]],
        MASK=mask,
        CYCLE_CORRECTION=rules.cycle_correction,
        FREEZE=rules.freeze_zero_variance,
        MAXIMIZE=rules.maximize,
        BLOCK=block,
        num_warps=max(1, block // 256),  # 8 elements a thread: 16 bytes and more in every dtype, and no spill
        # ptxas would spill two words on sm_80, for one more block a multiprocessor.
        **({"maxnreg": 128} if dtypes[0] == torch.float16 and mask == ROW.value and not torch.version.hip else {}),
        enable_fp_fusion=False,  # so that results are those of the reference, operation by operation
    )


def _advance(steps: list[Tensor], found_inf: Tensor | None) -> None:
    """step += 1, in a launch of its own because programs of the update read it; nothing where an infinity was found."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for step in steps:
        by_device.setdefault(step.device, []).append(step)
    for device, group in by_device.items():
        if found_inf is None:
            torch._foreach_add_(group, 1)
        else:
            torch._foreach_add_(group, (found_inf.to(device) == 0).to(torch.float32).reshape(()))
