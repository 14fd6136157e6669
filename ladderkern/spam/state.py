"""Optimizer state: what is fit to be stepped, how moments begin, and how checkpoints keep their precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import FLOATS, compact_shape
from .masks import sixteenths
from .options import dtype_named, state_dtype
from .sharding import Shard

if TYPE_CHECKING:
    from .optimizer import SPAM

MOMENT_KEYS = ("exp_avg", "exp_avg_sq")


def name_of(group: dict[str, Any], i: int) -> str:
    """How to call the i-th parameter of a group in a message."""
    names = group.get("param_names")
    return f"parameter {names[i]!r}" if names else f"params[{i}] of its group"


def check_params(group: dict[str, Any]) -> None:
    """Raise TypeError for a dtype that SPAM does not step, ValueError for flat FSDP1 parameters with density < 1."""
    for i, p in enumerate(group["params"]):
        if p.dtype not in FLOATS:
            raise TypeError(f"{name_of(group, i)} must be float32, bfloat16, float16 or float64, got {p.dtype}")
        # FSDP1 marks its flat parameters (and, with use_orig_params, their views) by this attribute.
        if getattr(p, "_fsdp_flattened", False) and sixteenths(group["density"]) < 16:
            raise ValueError(
                f"density must be 1 for {name_of(group, i)}, a flat FSDP1 parameter without rows; use fully_shard (FSDP2)"
            )


def check_gradients(params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
    """Raise TypeError for gradients that SPAM does not step."""
    kinds = {(grad.layout, grad.dtype) for grad in grads}
    unfit = {(layout, dtype) for layout, dtype in kinds if layout != torch.strided or dtype not in FLOATS}
    if unfit:
        p, grad = next((p, grad) for p, grad in zip(params, grads, strict=True) if (grad.layout, grad.dtype) in unfit)
        i = next(i for i, q in enumerate(group["params"]) if q is p)
        raise TypeError(f"the gradient of {name_of(group, i)} must be dense and real, got {grad.layout} of {grad.dtype}")


def moment_shape(group: dict[str, Any], p: Tensor) -> tuple[int, ...]:
    """Global shape of a parameter's moments."""
    return compact_shape(p.shape, sixteenths(group["density"]), group["mask_unit"] == "row")


def initialise(s: dict[str, Any], p: Tensor, group: dict[str, Any]) -> None:
    """Fill what a parameter's state lacks; what a hook or a checkpoint put there stays."""
    shape = moment_shape(group, p)
    shard = Shard.of(p)
    s.setdefault("step", torch.zeros((), dtype=torch.float32, device=p.device))
    for key in MOMENT_KEYS:
        if key in s:
            continue
        dtype = state_dtype(group, p)
        if shard is not None:
            position = next(i for i, q in enumerate(group["params"]) if q is p)
            s[key] = shard.zeros(shape, dtype, group["mask_unit"] == "row", name_of(group, position))
        elif shape == tuple(p.shape):
            s[key] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        else:
            s[key] = torch.zeros(shape, dtype=dtype, device=p.device)


class _Carried:
    """A state tensor on its way through ``Optimizer.load_state_dict``, which would cast a bare one to the parameter's dtype."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@contextmanager
def keeping_precision(optimizer: SPAM) -> Iterator[None]:
    """Within, ``Optimizer.load_state_dict`` checks moment shapes first and leaves moments in ``state_dtype``."""

    def wrap(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [dict(group) for group in state_dict["param_groups"]]
        by_id: dict[Any, tuple[Tensor, dict[str, Any]]] = {}
        for mine, saved in zip(optimizer.param_groups, groups, strict=False):
            for option in optimizer.defaults:  # checkpoints of AdamW lack ours: the group keeps what it has
                saved.setdefault(option, mine[option])
            saved["state_dtype"] = dtype_named(saved["state_dtype"])
            by_id.update({i: (p, saved) for i, p in zip(saved["params"], mine["params"], strict=False)})
        carried = {}
        for key, s in state_dict["state"].items():
            carried[key] = _carry(key, s, *by_id[key]) if key in by_id else s
        return {**state_dict, "state": carried, "param_groups": groups}

    def unwrap(_: Any) -> None:
        for s in optimizer.state.values():
            for key, item in s.items():
                if isinstance(item, _Carried):
                    s[key] = item.value

    handles = (
        optimizer.register_load_state_dict_pre_hook(wrap),  # after the user's hooks, before the casts
        optimizer.register_load_state_dict_post_hook(unwrap, prepend=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _carry(key: Any, s: dict[str, Any], p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    carried: dict[str, Any] = {}
    shape = moment_shape(group, p)
    for name in MOMENT_KEYS:
        if name not in s:
            continue
        if tuple(s[name].shape) != shape:
            raise ValueError(f"state_dict: {name} of parameter {key} must have shape {shape}, got {tuple(s[name].shape)}")
        moment = s[name].to(device=p.device, dtype=state_dtype(group, p))
        carried[name] = _Carried(moment.clone() if moment is s[name] else moment)
    if "step" in s:
        step = torch.as_tensor(s["step"], dtype=torch.float32, device=p.device)
        carried["step"] = _Carried(step.reshape(()).clone())
    return carried
