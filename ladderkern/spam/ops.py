"""The contract of the SPAM ops: schemas, the check, fakes, registration, and the call that honours ``backend()``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..runtime import backend, library
from . import reference
from .checks import LISTS, check
from .reference import Hyper

_HYPER = (
    "float beta1, float beta2, float eps, float weight_decay, float threshold, int reset_interval, int warmup_steps, "
    "int unclipped_steps, bool cycle_correction, bool freeze_zero_variance, bool maximize, int density_16ths, "
    "bool row_mask, int seed"
)
# grads are declared mutable for the AMP path alone, which writes the unscaled gradient back as torch's fused optimizers do.
_STEP = (
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] steps, "
    f"Tensor lr, *, {_HYPER}, int[] indices, int[] placement, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)
_UPDATE = (
    f"(Tensor param, Tensor grad, Tensor exp_avg, Tensor exp_avg_sq, Tensor step, Tensor lr, *, {_HYPER}, int index=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def check_step(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, *, indices, placement, grad_scale=None, found_inf=None, **hyper: Any
) -> None:
    """The check of spam_step_; ``hyper`` are the other keywords of its schema."""
    written = LISTS if grad_scale is not None else tuple(name for name in LISTS if name != "grads")
    mask = (hyper["density_16ths"], hyper["row_mask"])
    check(params, grads, exp_avgs, exp_avg_sqs, steps, lr, indices, placement, *mask, written)


def _step_fake(*tensors, **keywords):
    pass


def _step_reference(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, *, indices, placement, grad_scale=None, found_inf=None, **hyper
):
    lists = (params, grads, exp_avgs, exp_avg_sqs, steps)
    reference.spam_step_(*lists, lr, Hyper(**hyper), indices, placement, grad_scale, found_inf)


def _update(param, grad, exp_avg, exp_avg_sq, step, lr, *, index=0, **hyper):
    tensors = ([param], [grad], [exp_avg], [exp_avg_sq], [step])
    check(*tensors, lr, [index], [], hyper["density_16ths"], hyper["row_mask"], written=())
    return reference.spam_update(param, grad, exp_avg, exp_avg_sq, step, lr, Hyper(**hyper), index)


SPAM_STEP = library.define(
    "spam_step_",
    _STEP,
    check=check_step,
    reference=_step_reference,
    fake=_step_fake,
    triton=("ladderkern.spam.kernels", "spam_step_"),
    cuda=True,
    triton_checks=True,
)
SPAM_UPDATE = library.define_composite("spam_update", _UPDATE, _update)


def spam_step_(
    lists: Sequence[list[Tensor]],
    lr: Tensor,
    indices: list[int],
    placement: list[int],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    options: dict[str, Any],
) -> None:
    """``torch.ops.ladderkern.spam_step_`` on the backend in force; errors name the argument as ValueError or TypeError.

    ``lists`` are params, grads, exp_avgs, exp_avg_sqs and steps; ``options`` the schema's keywords from beta1 to seed.
    """
    overload = backend.select(SPAM_STEP, *lists[0][:1])
    where = {"indices": indices, "placement": placement}
    try:
        overload(*lists, lr, grad_scale=grad_scale, found_inf=found_inf, **where, **options)
    except RuntimeError:
        # Native code checks before it writes, and can only raise RuntimeError: say the same in Python's terms.
        params, grads, exp_avgs, exp_avg_sqs, steps = lists
        check_step(params, grads, exp_avgs, exp_avg_sqs, steps, lr, grad_scale=grad_scale, **where, **options)
        raise
