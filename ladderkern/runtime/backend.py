"""Which implementation serves a call: the choice by name, and its explanation."""

from __future__ import annotations

import importlib.util
import os
import weakref
from contextvars import ContextVar, Token
from typing import Any

from torch import Tensor

from .library import CUDA, NATIVE, OPS, Op

NAMES = ("auto", "reference", "native", "triton", "cuda")
_BEST_FIRST = {"cuda": ("cuda", "triton", "reference"), "cpu": ("native", "reference")}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call; the message says why.

    >>> try:
    ...     with ladderkern.backend("cuda"):
    ...         ladderkern.rms_norm(torch.ones(2, 4), torch.ones(4))
    ... except ladderkern.BackendUnavailable as error:
    ...     print(type(error).__name__)
    BackendUnavailable
    """


def _checked(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"backend name must be one of {', '.join(NAMES)}, got {name!r}")
    return name


class _Choice:
    """The process-wide choice, as the latest of the plain ``backend(...)`` calls."""

    def __init__(self, start: str) -> None:
        self._calls: list[tuple[weakref.ref[backend] | None, str]] = [(None, start)]
        self.name = start

    def push(self, call: backend) -> None:
        # A call whose object is gone can no longer become a context manager: it is final, and hides all before it.
        final = max(i for i, (ref, _) in enumerate(self._calls) if ref is None or ref() is None)
        self._calls = [*self._calls[final:], (weakref.ref(call), call.name)]
        self.name = call.name

    def withdraw(self, call: backend) -> None:
        self._calls = [entry for entry in self._calls if entry[0] is None or entry[0]() is not call]
        self.name = self._calls[-1][1]


_process = _Choice(_checked(os.environ.get("LADDERKERN_BACKEND", "auto")))
_context: ContextVar[str | None] = ContextVar("ladderkern_backend", default=None)


class backend:  # noqa: N801 - used like torch.no_grad
    """Choose which implementation public functions use.

    A plain call, ``ladderkern.backend("reference")``, sets it for the process; as a context manager,
    ``with ladderkern.backend("triton"):``, it holds for this thread and context alone.

    Args:
        name: ``"auto"`` (the best that can serve: on CUDA cuda, triton, reference; on CPU native, reference),
            ``"reference"`` (plain PyTorch), ``"native"`` (C++), ``"triton"`` or ``"cuda"``. A name other than auto that
            cannot serve a call raises :class:`BackendUnavailable` there. ``LADDERKERN_BACKEND`` sets the start value. A call
            under ``torch.compile`` keeps the choice that was in force when it was compiled.

    Raises:
        ValueError: for another name.

    >>> with ladderkern.backend("reference"):
    ...     ladderkern.rms_norm(torch.full((1, 4), 2.0), torch.ones(4), eps=0.0)
    tensor([[1., 1., 1., 1.]])
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name)
        self._tokens: list[Token[str | None]] = []
        _process.push(self)

    def __enter__(self) -> backend:
        _process.withdraw(self)
        self._tokens.append(_context.set(self.name))
        return self

    def __exit__(self, *exc: object) -> None:
        _context.reset(self._tokens.pop())


def current() -> str:
    """The name in force here: the innermost context's, else the process's."""
    return _context.get() or _process.name


# Dynamo cannot trace a ContextVar: under torch.compile the choice is the one in force when the call is compiled.
# (torch.compiler.assume_constant_result sets the same attribute, but imports Dynamo, and with it Triton, to do so.)
current._dynamo_marked_constant = True  # type: ignore[attr-defined]


def interpreting() -> bool:
    """Whether Triton runs its kernels on CPU tensors, by its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _why_not(op: Op, name: str, device: str) -> str:
    """Why backend ``name`` cannot serve ``op`` on tensors of ``device``; empty if it can."""
    if name == "cuda" and device != "cuda":
        return f"it serves CUDA tensors, not {device}"
    if name not in op.backends:
        return f"the op is written for {', '.join(op.backends)} alone"
    if name == "cuda":
        return "" if CUDA.loaded else f"the CUDA library {CUDA.reason}"
    if name == "native":
        if device != "cpu":
            return f"it serves CPU tensors, not {device}"
        return "" if NATIVE.loaded else NATIVE.reason
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if device == "cpu" and not interpreting():
            return "CPU tensors need TRITON_INTERPRET=1, set before import"
        return "" if device in ("cpu", "cuda") else f"it serves CUDA and ROCm tensors, not {device}"
    return ""


def select(op: Op, *tensors: Tensor) -> Any:
    """The overload of ``op`` that serves a call on these tensors under the choice in force.

    Raises:
        BackendUnavailable: the backend asked for by name cannot serve them.
    """
    name = current()
    if name == "auto":
        return op.default
    reason = _why_not(op, name, tensors[0].device.type if tensors else "cpu")
    if reason:
        raise BackendUnavailable(f"backend {name!r} cannot serve {op.name}: {reason}")
    return {"reference": op.reference, "triton": op.triton}.get(name, op.default)


def explain(op: Any, *tensors: Tensor) -> str:
    """One line: which backend would serve ``op`` on these tensors, and why each better one would not.

    Args:
        op: an op's name (``"spam_step_"``) or its OpOverload.
        tensors: tensors that the call would get; none means CPU.

    Raises:
        ValueError: ``op`` names no op of this package.

    >>> with ladderkern.backend("reference"):
    ...     print("reference" in ladderkern.explain("rms_norm", torch.ones(2, 4)))
    True
    """
    name = op if isinstance(op, str) else op._schema.name.split("::")[-1]
    if name not in OPS:
        raise ValueError(f"op must be one of {', '.join(sorted(OPS))}, got {name!r}")
    device = tensors[0].device.type if tensors else "cpu"
    chosen = current()
    if chosen != "auto":
        reason = _why_not(OPS[name], chosen, device)
        verdict = f"cannot serve: {reason}" if reason else "as asked for by name"
        return f"{name} on {device}: {chosen} ({verdict})"
    refused = []
    for candidate in _BEST_FIRST.get(device, ("reference",)):
        reason = _why_not(OPS[name], candidate, device)
        if not reason:
            break
        refused.append(f"not {candidate}: {reason}")
    return f"{name} on {device}: {candidate}" + (f" ({'; '.join(refused)})" if refused else "")
