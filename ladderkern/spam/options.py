"""The options of a parameter group: their ranges, and how the op takes them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .checks import MOMENTS
from .masks import check_mask_unit, sixteenths


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError, naming the option, unless every option of a group is in range."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or lr.is_complex():
            raise ValueError(f"lr must hold one real number, got {lr.dtype} of shape {tuple(lr.shape)}")
        if lr.device.type == "cpu":
            _at_least_zero("lr", lr.item())
    else:
        _at_least_zero("lr", lr)
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.device.type != "cpu":
            raise ValueError(f"betas[{i}] must be a float or a CPU tensor, got a tensor on {beta.device}")
        if not isinstance(beta, (int, float, Tensor)) or not 0.0 <= beta < 1.0:
            raise ValueError(f"betas[{i}] must be in [0, 1), got {beta}")
    for name in ("eps", "weight_decay"):
        _at_least_zero(name, group[name])
    if group["threshold"] is not None:
        _at_least_zero("threshold", group["threshold"])
    for name in ("reset_interval", "warmup_steps", "unclipped_steps"):
        _count(name, group[name])
    _one_of("bias_correction", group["bias_correction"], ("global", "cycle"))
    _one_of("zero_variance", group["zero_variance"], ("pass", "freeze"))
    _one_of("state_dtype", group["state_dtype"], (None, *MOMENTS))
    if not isinstance(group["seed"], int) or not -(2**63) <= group["seed"] < 2**63:
        raise ValueError(f"seed must be a 64-bit int, got {group['seed']!r}")
    check_mask_unit(group["mask_unit"])
    sixteenths(group["density"])


def _at_least_zero(name: str, value: float) -> None:
    if not isinstance(value, (int, float, Tensor)) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of 0 or more, got {value}")


def _count(name: str, value: int | None) -> None:
    if value is None and name == "reset_interval":
        return
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{name} must be an int of 0 or more, got {value!r}")


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def odd_pair(group: dict[str, Any]) -> str | None:
    """What is odd about options that are each in range, if anything."""
    reset_interval, warmup_steps = group["reset_interval"] or 0, group["warmup_steps"]
    if reset_interval == 0 and group["density"] < 1:
        return "density < 1 without resets: the elements outside the first mask never move"
    if 0 < reset_interval < warmup_steps:
        return f"warmup_steps={warmup_steps} > reset_interval={reset_interval}: the learning rate never recovers"
    return None


def op_options(group: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``ops.spam_step_`` that one group sets."""
    return {
        "beta1": float(group["betas"][0]),
        "beta2": float(group["betas"][1]),
        "eps": float(group["eps"]),
        "weight_decay": float(group["weight_decay"]),
        "threshold": float(group["threshold"] or 0.0),
        "reset_interval": group["reset_interval"] or 0,
        "warmup_steps": group["warmup_steps"],
        "unclipped_steps": group["unclipped_steps"],
        "cycle_correction": group["bias_correction"] == "cycle",
        "freeze_zero_variance": group["zero_variance"] == "freeze",
        "maximize": bool(group["maximize"]),
        "density_16ths": sixteenths(group["density"]),
        "row_mask": group["mask_unit"] == "row",
        "seed": group["seed"],
    }


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """The name under which a checkpoint holds a dtype, or None."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def dtype_named(name: torch.dtype | str | None) -> torch.dtype | None:
    """The inverse of ``dtype_name``; a dtype is its own name."""
    return getattr(torch, name) if isinstance(name, str) else name


def state_dtype(group: dict[str, Any], p: Tensor) -> torch.dtype:
    """The dtype of a parameter's moments."""
    return group["state_dtype"] or (torch.float64 if p.dtype == torch.float64 else torch.float32)
