"""What holds for ladders in CUDA graphs and in compiled code, and the checks that say so.

- A sum is launched and waited for in the same region: both inside of one capture or one compiled graph, or both outside. A
  :class:`LadderStack` ends each forward, and each backward, with no sum in flight, so a region that holds whole calls of it
  keeps the rule, as does one inside of a single branch (``compile_branches``, in any mode).
- Before a capture the step has run at least once, on a stream other than the default: communicators of NCCL, and the buffers of
  symmetric memory, are made by the first message of each size, with a wait on the host.
- ``torch.cuda.graph(graph, capture_error_mode="thread_local")``: NCCL's watchdog thread queries events meanwhile.
- Compiled as a whole the stack uses functional collectives, whose launches and waits stay where the ladder puts them. With a
  mode that makes CUDA graphs ("reduce-overhead", "max-autotune") it needs ``fullgraph=True``: over a graph break a sum in
  flight would cross from one graph to another. ``LadderStack.compile`` checks it; nothing can where ``torch.compile`` is called
  on a model around the stack.
- Handles of a :class:`Communicator` do not go into compiled code. There ``torch.ops.ladderkern.all_reduce_start`` and
  ``all_reduce_wait`` sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def capturing(tensor: Tensor) -> bool:
    """Whether what is done to the tensor now goes into a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def check_same_region(name: Any, launched: bool, waited: bool) -> None:
    """A sum that is waited for while capturing was launched while capturing, and the other way round.

    Raises:
        RuntimeError: it crosses.
    """
    if launched == waited:
        return
    places = ("inside of", "outside of")
    first, second = places if launched else places[::-1]
    raise RuntimeError(
        f"the {name} was launched {first} a CUDA graph capture and is waited for {second} it: capture whole calls of the stack"
    )


def check_ready(tensor: Tensor, what: str) -> None:
    """What the host must wait for is done before a capture.

    Raises:
        RuntimeError: ``what`` would be made while capturing.
    """
    if capturing(tensor):
        raise RuntimeError(f"{what} cannot be made inside of a CUDA graph capture: run the step once before capturing it")


def check_eager(name: Any) -> None:
    """Handles belong to code that is not compiled.

    Raises:
        RuntimeError: under torch.compile.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"the {name} has a handle, which compiled code cannot hold: use torch.ops.ladderkern.all_reduce_start and "
            "all_reduce_wait there, or compile a whole LadderStack"
        )


def check_graphs_are_whole(fullgraph: bool, mode: str | None, options: dict[str, Any] | None) -> None:
    """Modes of ``torch.compile`` that make CUDA graphs make a single one.

    Raises:
        ValueError: there may be several.
    """
    chosen = {**(torch._inductor.list_mode_options(mode) if mode else {}), **(options or {})}
    if chosen.get("triton.cudagraphs") and not fullgraph:
        how = f"mode={mode!r}" if mode else "options with triton.cudagraphs"
        raise ValueError(
            f"{how} makes CUDA graphs, and needs fullgraph=True: over a graph break a sum in flight would cross from one to "
            "another; or use compile_branches, whose graphs hold no sums"
        )
