"""The SPAM optimizer: what users construct, step and checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from . import ops, state
from .options import check_group, dtype_name, odd_pair, op_options
from .sharding import Shard, is_sharded


class SPAM(Optimizer):
    """Adam with momentum reset, spike-aware clipping and optional sparse momentum, one fused call a step and group.

    Args:
        params: parameters, named parameters or groups, as for any ``torch.optim.Optimizer``. float32, bfloat16, float16 or
            float64; gradients may have another of these dtypes. DTensors (FSDP2, tensor parallel) are stepped shard by shard.
        lr: learning rate; a float or a tensor of one number (use a tensor under ``torch.compile`` and CUDA graphs).
        betas: decay rates of the moments, in [0, 1).
        eps: added to sqrt(exp_avg_sq) before bias correction, as published.
        weight_decay: decoupled: ``p *= 1 - lr * weight_decay`` before the update, for every element.
        threshold: theta. A gradient with g^2 > theta * exp_avg_sq is cut to sign(g) sqrt(theta * exp_avg_sq). 0 or None: never.
        reset_interval: steps in a cycle; both moments restart from zero when ``step`` is a multiple of it. 0 or None: never.
        warmup_steps: length of the cosine re-warm-up of the update after each reset.
        unclipped_steps: steps at the start of each cycle in which nothing is clipped.
        density: share of the elements that hold moments and move in a cycle: a multiple of 1/16 in (0, 1].
        mask_unit: what is drawn: ``"element"`` (16 * density of every 16 along the last dimension) or ``"row"`` (of every 16
            rows along the first). Parameters to which it cannot apply stay dense; see :func:`ladderkern.spam.mask`.
        bias_correction: ``"global"`` counts all steps, as published; ``"cycle"`` restarts with the moments.
        zero_variance: where exp_avg_sq is 0, ``"pass"`` leaves the gradient alone; ``"freeze"`` clips it to 0, as published.
        seed: of the masks and of the stochastic rounding of bfloat16 moments.
        maximize: ascend instead.
        capturable: promise that ``step`` may run inside CUDA-graph capture; no device value is ever read on the host.
        state_dtype: dtype of the moments: None (float32; float64 for float64 parameters), float32, bfloat16 (rounded
            stochastically) or float64.

    All but ``params`` may be set per group. State per parameter: ``step`` (0-dim float32), ``exp_avg``, ``exp_avg_sq``; nothing
    else. Masks are a function of (seed, index of the parameter over all groups, cycle), so with one optimizer per parameter
    every index is 0 and parameters of one shape draw the same mask. ``step`` counts exactly up to 2^24.

    Raises:
        ValueError: an option out of range, named in the message.
        TypeError: complex or integer parameters; at ``step``, sparse or complex gradients.

    Source: Huang et al. 2025, arXiv 2501.06842, and the published code; differences: decoupled weight decay that works for
    every element, ``p.grad`` left alone, exact mask counts, per-parameter phase, closures run with gradients on.

    >>> optimizer = ladderkern.SPAM(model.parameters(), lr=1e-3)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    """

    # What torch.amp.GradScaler looks at: it hands over grad_scale and found_inf, and never reads found_inf on the host.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        threshold: float | None = 5000.0,
        reset_interval: int | None = 500,
        warmup_steps: int = 150,
        unclipped_steps: int = 20,
        density: float = 1.0,
        mask_unit: str = "element",
        bias_correction: str = "global",
        zero_variance: str = "pass",
        seed: int = 0,
        maximize: bool = False,
        capturable: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; options out of range raise and leave the optimizer as it was."""
        options = {**self.defaults, **param_group}
        check_group(options)
        super().add_param_group(param_group)
        try:
            state.check_params(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        odd = odd_pair(options)
        if odd and not getattr(self, "_has_warned", False):
            self._has_warned = True  # one warning an optimizer, however many groups share the options
            warnings.warn(odd, stacklevel=4)  # to the line that constructs: it, our __init__, torch's, this

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        super().__setstate__(pickled)
        for group in self.param_groups:  # pickles of older versions may lack options
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """As for any optimizer; ``state_dtype`` is saved as its name, which every checkpoint format can hold."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group["state_dtype"] = dtype_name(group["state_dtype"])
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of SPAM or of torch's Adam or AdamW; moments are cast to ``state_dtype``, not to the parameter's dtype.

        Raises:
            ValueError: moments of other shapes than this optimizer's (nothing is changed then).
        """
        with state.keeping_precision(self):
            super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss; run with gradients on.

        Returns:
            the closure's value, or None.
        """
        self._check_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first, calls = 0, []
        for group in self.param_groups:
            call = _Call.of(group, first)
            state.check_gradients(call.params, call.grads, group)
            calls.append(call)
            first += len(group["params"])
        batches: list[tuple[dict[str, Any], _Batch]] = []
        for call in calls:
            batches += [(call.group, batch) for batch in call.batches(self.state)]
        for group, batch in batches:  # all is known to be fit before the first parameter moves
            batch.run(group, getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        return loss

    def _check_capture(self) -> None:
        check = getattr(self, "_accelerator_graph_capture_health_check", None)  # its name since torch 2.13
        (check or self._cuda_graph_capture_health_check)()


@dataclass
class _Call:
    """The parameters of one group that have a gradient. Lists, not one object a parameter: a step of many small tensors
    is as fast as this loop."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    indices: list[int]

    @staticmethod
    def of(group: dict[str, Any], first: int) -> _Call:
        """``first`` is the index of the group's first parameter among those of all groups."""
        params, grads = group["params"], [p.grad for p in group["params"]]
        indices = list(range(first, first + len(params)))
        if any(grad is None for grad in grads):
            held = [i for i, grad in enumerate(grads) if grad is not None]
            params, grads, indices = (_pick(items, held) for items in (params, grads, indices))
        return _Call(group, params, grads, indices)

    def batches(self, states: dict[Tensor, dict[str, Any]]) -> list[_Batch]:
        """One batch a device, with all states initialised."""
        params = self.params
        held = [states[p] for p in params]
        for p, s in zip(params, held, strict=True):
            if len(s) < 3:
                state.initialise(s, p, self.group)
        lists = (params, self.grads, *([s[key] for s in held] for key in (*state.MOMENT_KEYS, "step")))
        shards: list[Shard | None] = []
        if any(map(is_sharded, set(map(type, params)))):
            shards = [Shard.of(p) for p in params]
            rows = []
            for shard, *row in zip(shards, *lists, strict=True):
                rows.append(row if shard is None else [*shard.local(*row[:4]), row[4]])
            lists = tuple(map(list, zip(*rows, strict=True)))
        devices = [p.device for p in params]
        whole = _Batch(lists, self.indices, shards)
        return [whole.of_device(device, devices) for device in dict.fromkeys(devices)]


@dataclass
class _Batch:
    """The tensor lists of one op call: the parameters of one group on one device; ``shards`` is empty if none is sharded."""

    lists: tuple[list[Tensor], ...]  # params, grads, exp_avgs, exp_avg_sqs, steps
    indices: list[int]
    shards: list[Shard | None]

    def of_device(self, device: torch.device, devices: list[torch.device]) -> _Batch:
        held = [i for i, other in enumerate(devices) if other == device]
        if len(held) == len(devices):
            return self
        lists = tuple(_pick(items, held) for items in self.lists)
        return _Batch(lists, _pick(self.indices, held), _pick(self.shards, held) if self.shards else [])

    def run(self, group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        device = self.lists[0][0].device
        lr = group["lr"]
        if not isinstance(lr, Tensor):
            lr = torch.tensor(lr, dtype=torch.float64)
        elif device.type == "cpu":
            lr = lr.to(device)
        placement: list[int] = []
        if any(self.shards):
            for shard, p in zip(self.shards, self.lists[0], strict=True):
                placement += shard.placement if shard else (p.numel(), p.numel(), 0, 0)
        on_device = [None if t is None else t.to(device, non_blocking=True) for t in (grad_scale, found_inf)]
        ops.spam_step_(self.lists, lr, self.indices, placement, on_device[0], on_device[1], op_options(group))


def _pick(items: list[Any], positions: list[int]) -> list[Any]:
    return [items[i] for i in positions]
