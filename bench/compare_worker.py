"""One side of bench/compare.py: a process that imports ladderkern of one revision and times the cases it is asked for.

It reads the name of a case a line and answers with a line of JSON. The cases and the timing are those of this checkout, for
every revision alike; of the revision comes the package alone.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

BENCH = Path(__file__).resolve().parent


class Case(NamedTuple):
    """Ours and what it is held against; each makes a builder, as ``harness.measure`` takes them."""

    ours: Callable[[], Any]
    yardstick: Callable[[], Any]
    steps: int  # timed together: a sample should be some milliseconds


def cases() -> dict[str, Case]:
    """By name, from the bench's own peers. Sizes are such that a sample of both takes well under a second."""
    import discrepancy_peers as losses
    import ladder_peers as norms
    import peers
    import prm_peers as scores
    import torch

    from ladderkern.prm import score_steps

    large, small = peers.Problem(((1024, 1024),) * 8), peers.Problem(((64, 64),) * 200)
    narrow = losses.Problem(256, 4096, 4096, torch.float32)
    wide = narrow._replace(columns=16384)
    steps, norm = scores.Steps(3400), norms.NormProblem(1024, 2048, torch.float32)
    fused = {problem: lambda problem=problem: peers.adamw(problem, fused=True) for problem in (large, small)}
    return {
        "spam-dense": Case(lambda: peers.spam(large), fused[large], 1),
        "spam-small": Case(lambda: peers.spam(small), fused[small], 10),
        "spam-element": Case(lambda: peers.spam(large, density=0.25, mask_unit="element"), fused[large], 1),
        "spam-row": Case(lambda: peers.spam(large, density=0.25, mask_unit="row"), fused[large], 1),
        "discrepancy": Case(lambda: losses.ours(narrow), lambda: losses.eager(narrow), 2),
        "joint": Case(lambda: losses.joint(wide), lambda: losses.eager_sum(wide), 1),
        "prm": Case(lambda: scores.forward(score_steps, steps), lambda: scores.forward(scores.vectorised, steps), 10),
        "norm": Case(lambda: norms.ours(norm), lambda: norms.eager(norm), 2),
    }


def borrowed(name: str) -> ModuleType:
    """A module of the package as it stands in this checkout, whatever the revision has, put in the revision's package."""
    spec = importlib.util.spec_from_file_location(name, BENCH.parent.joinpath(*name.split(".")).with_suffix(".py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Serve until the input ends."""
    root, rounds = Path(sys.argv[1]), int(sys.argv[2])
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the answers alone go to stdout
        ladderkern = importlib.import_module("ladderkern")
        if not Path(ladderkern.__file__).is_relative_to(root):
            raise SystemExit(f"ladderkern came from {ladderkern.__file__}, not from {root}")
        if importlib.util.find_spec("ladderkern.runtime.machine") is None:  # older than the timing
            borrowed("ladderkern.runtime.machine")
        timing = borrowed("ladderkern.testing.timing")
        timing.keep_freed_memory()
        known = cases()
        print(json.dumps({"cases": list(known), "native": ladderkern.info()["native"]}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(timing, known[line.strip()], rounds)), file=answers, flush=True)


def _answer(timing: ModuleType, case: Case, rounds: int) -> dict[str, Any]:
    try:
        builders = {"ours": case.ours(), "yardstick": case.yardstick()}
        measured = timing.measure(builders, timing.Plan(rebuilds=1, rounds=rounds, steps=case.steps, untimed=1))
        return {"ratio": measured.ratio("ours", "yardstick").median}
    except Exception as error:  # an older revision may lack what a case calls; the other cases go on
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
