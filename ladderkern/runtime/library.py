"""Op registration and loading of the compiled library.

Python owns every schema, so that the package works with no compiled part. Each op has three overloads of one schema:
the default one, which the dispatcher resolves (native C++ on CPU where it is built, CUDA C++ or Triton on a GPU, else the
reference),
and ``.reference`` and ``.triton``, which force that implementation. Being ops, all three compile, export and pass opcheck.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

NAMESPACE = "ladderkern"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


@dataclass(frozen=True)
class Op:
    """One registered op, its forced overloads, and the backends that it is written for."""

    name: str
    default: Any
    reference: Any
    triton: Any
    backends: tuple[str, ...]
    launcher: tuple[str, str] | None = None  # of Triton: module and function


@dataclass(frozen=True)
class Gradient:
    """How a differentiable op is differentiated: see :func:`differentiable_by`."""

    formula: Callable[..., Any]
    backward: Op
    setup_context: Callable[..., Any]


OPS: dict[str, Op] = {}
GRADIENTS: dict[str, Gradient] = {}  # by the name of the forward op


def define(
    name: str,
    schema: str,
    *,
    check: Callable[..., None],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    triton: tuple[str, str],
    cuda: bool = False,
    triton_checks: bool = False,
) -> Op:
    """Register one op: schema text, fake, and its Python implementations.

    ``check`` gets the arguments before each of these does: an op called eagerly never runs its fake. ``triton`` is (module,
    function) of the launcher: Triton is imported when the first call needs it, not before. ``cuda``: the CUDA library serves
    the op too, where it is loaded. ``triton_checks``: the launcher calls ``check`` itself, when it has something new to check.
    """
    module, function = triton

    def checked(implementation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            check(*args, **kwargs)
            return implementation(*args, **kwargs)

        return call

    def load_and_launch(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*args, **kwargs)

    reference, fake = checked(reference), checked(fake)
    launch = load_and_launch if triton_checks else checked(load_and_launch)
    for overload, implementation in (("", reference), (".reference", reference), (".triton", launch)):
        LIBRARY.define(f"{name}{overload}{schema}")
        LIBRARY.impl(f"{name}{overload}", implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}{overload}", fake, lib=LIBRARY)
    if importlib.util.find_spec("triton") is not None and not (cuda and CUDA.loaded):
        LIBRARY.impl(name, launch, "CUDA")  # also ROCm, whose dispatch key is the same
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    backends = ("native", "cuda", "triton", "reference") if cuda else ("native", "triton", "reference")
    OPS[name] = Op(name, packet.default, packet.reference, packet.triton, backends, triton)
    return OPS[name]


def define_composite(name: str, schema: str, implementation: Callable[..., Any]) -> Op:
    """Register an op that decomposes into differentiable PyTorch on every device."""
    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, implementation, "CompositeImplicitAutograd")
    default = getattr(getattr(torch.ops, NAMESPACE), name).default
    OPS[name] = Op(name, default, default, None, ("reference",))
    return OPS[name]


def raise_on_double_backward(name: str) -> NoReturn:
    """What stands where a second derivative would: silence would mean zero."""
    raise RuntimeError(
        f"{name} is differentiable once: its second derivative is not implemented (for a gradient penalty, write it in plain "
        "PyTorch, as the reference module beside the op does)"
    )


def differentiable(forward: Op, backward: Op, count: int, saved: slice) -> None:
    """Tie each overload of ``forward`` to the same overload of ``backward``, whose own derivative is an error.

    The first ``count`` outputs are differentiable, in the first input alone. The backward op takes their gradients, the inputs,
    the outputs that ``saved`` picks, and the keywords. A gradient that nobody asks for is zeros of stride 0.
    """

    def setup_context(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[count:])
        ctx.set_materialize_grads(False)
        ctx.like = [(o.shape, o.dtype) for o in output[:count]]
        ctx.save_for_backward(*inputs, *output[saved])
        ctx.options = keyword_only_inputs
        ctx.others = (None,) * (len(inputs) - 1)

    def backward_of(op: Any, ctx: Any, *grads: Any) -> Any:
        first, *_ = ctx.saved_tensors
        asked = [
            first.new_zeros((), dtype=dtype).expand(shape) if grad is None else grad
            for grad, (shape, dtype) in zip(grads[:count], ctx.like, strict=True)
        ]
        return op(*asked, *ctx.saved_tensors, **ctx.options), *ctx.others

    differentiable_by(backward_of, forward, backward, setup_context)


def differentiable_by(formula: Callable[..., Any], forward: Op, backward: Op, setup_context: Callable[..., Any]) -> None:
    """:func:`differentiable` for any other signature: ``formula(backward's overload, ctx, *grads)`` gives the gradients."""

    def second_derivative(ctx: Any, *grads: Any) -> NoReturn:
        raise_on_double_backward(forward.name)

    GRADIENTS[forward.name] = Gradient(formula, backward, setup_context)
    register = partial(torch.library.register_autograd, lib=LIBRARY)
    for name in ("default", "reference", "triton"):
        suffix = "" if name == "default" else f".{name}"
        gradient = partial(formula, getattr(backward, name))
        register(f"{NAMESPACE}::{forward.name}{suffix}", gradient, setup_context=setup_context)
        register(f"{NAMESPACE}::{backward.name}{suffix}", second_derivative)


@dataclass(frozen=True)
class NativeStatus:
    """Whether the C++ library serves, and if not, why."""

    loaded: bool
    reason: str
    tier: str = "none"  # of the CPU: baseline, avx2 or avx512


_FOLDER = Path(__file__).resolve().parent.parent / "lib"


def _load_error(path: Path) -> str:
    """Loads a library, which registers what it implements; the reason if it fails."""
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"failed to load: {str(error).splitlines()[0]}"
    return ""


def _load_native() -> NativeStatus:
    path = _FOLDER / "libladderkern_native.so"
    if not path.exists():
        return NativeStatus(False, "not built: this is a pure-Python installation")
    if error := _load_error(path):
        return NativeStatus(False, error)
    query = ctypes.CDLL(str(path)).ladderkern_cpu_isa
    query.restype = ctypes.c_char_p
    tier: bytes | None = query()
    if tier is None:
        wanted = os.environ.get("LADDERKERN_CPU_ISA")
        return NativeStatus(False, f"LADDERKERN_CPU_ISA={wanted} names no tier of this CPU and build (baseline, avx2, avx512)")
    return NativeStatus(True, "", tier.decode())


@dataclass(frozen=True)
class CudaStatus:
    """Whether the CUDA library serves CUDA tensors, and if not, why."""

    loaded: bool
    reason: str
    version: str = "none"  # of the CUDA toolkit that it is built with


def _load_cuda() -> CudaStatus:
    path = _FOLDER / "libladderkern_cuda.so"
    if torch.version.cuda is None:
        return CudaStatus(False, "does not serve a torch that is built without CUDA")
    if not path.exists():
        return CudaStatus(
            False, "was not built: ladderkern was installed where nvcc was not found, or with LADDERKERN_BUILD_CUDA=0"
        )
    if error := _load_error(path):
        return CudaStatus(False, error)
    library = ctypes.CDLL(str(path))
    library.ladderkern_cuda_reason.restype = ctypes.c_char_p
    reason: bytes = library.ladderkern_cuda_reason()
    version = int(library.ladderkern_cuda_version())
    return CudaStatus(
        not reason, f"does not serve: {reason.decode()}" if reason else "", f"{version // 1000}.{version // 10 % 100}"
    )


NATIVE = _load_native()
CUDA = _load_cuda()
