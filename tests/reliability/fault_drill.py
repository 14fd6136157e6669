"""Kill a rank at a random module of a tensor-parallel ladder in training, again and again, and tell what the others do.

    python tests/reliability/fault_drill.py --kills 20 --seed 0 --ranks 2 3

Each time fresh processes train a ladder Llama over gloo with SPAM; one of them sends itself SIGKILL in the forward or the
backward of a module, or before the optimizer's step. The others must raise within the group's timeout, and every step that they
finished must be that of an undisturbed run, to the bit. The exit status is 1 if one hung, was late, went on or was wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_leaves

import ladderkern
from ladderkern.runtime.text import text_table
from ladderkern.testing import fingerprint_of

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

from ranks import Launcher

TIMEOUT = 5  # seconds, of the group: what a rank waits for one that is silent
LIMIT = 2 * TIMEOUT  # from the death to the error: the timeout, and what a busy machine computes before the next sum
STEPS = 4
SHAPE = {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48}  # what 2 and what 3 ranks can share
IN_TIME = "error in time"


class Place(NamedTuple):
    """Where a rank dies: "forward" or "backward" of a module, or "optimizer"."""

    phase: str
    module: str

    def __str__(self) -> str:
        return f"{self.phase} {self.module}".rstrip()


# ------------------------------------------------------------------------------------------------------------- on the ranks


def steps(at: Callable[[int, torch.nn.Module], Callable[[], None]]) -> Iterator[tuple[float, str]]:
    """Trains; (loss, fingerprint of this rank's parameters) of each step. ``at(step, model)`` is told of a step that begins,
    and returns what to call before the optimizer's."""
    from ladderkern import ladder
    from ladderkern.testing.llamas import tiny_llama

    mesh = DeviceMesh.from_group(dist.new_group(timeout=timedelta(seconds=TIMEOUT)), "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that were trained with another wiring
        wired = ladder.to_ladder(tiny_llama(**SHAPE), [1, 2, 3])
    model = ladder.tensor_parallel(wired, mesh).train()
    optimizer = ladderkern.SPAM(model.parameters(), lr=0.01, reset_interval=2, warmup_steps=1)
    for step in range(STEPS):
        before_optimizer = at(step, model)
        ids = torch.randint(1, 61, (2, 8), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        before_optimizer()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item(), fingerprint_of(p.to_local() for p in model.parameters())


def hook(model: torch.nn.Module, place: Place, act: Callable[[], None]) -> None:
    """Calls ``act`` when the forward of a module begins, or the backward of what it returned."""
    module = model.get_submodule(place.module)
    if place.phase == "forward":
        module.register_forward_pre_hook(lambda *_: act())
        return

    def watch(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: act())
                return

    module.register_forward_hook(watch)


def undisturbed() -> tuple[list[tuple[float, str]], list[tuple[str, str]]]:
    """(what the steps give, where a rank can die: the places that a step passes)."""
    passed = {Place("optimizer", ""): None}

    def record_all(step: int, model: torch.nn.Module) -> Callable[[], None]:
        for name, _ in model.named_modules() if step == 0 else ():
            for place in (Place("forward", name), Place("backward", name)):
                hook(model, place, lambda place=place: passed.setdefault(place))
        return lambda: None

    return list(steps(record_all)), [tuple(place) for place in passed]  # the session knows no class of this module's name


def disturbed(victim: int, fatal_step: int, place: tuple[str, str], note: str) -> tuple[list, float | None, str]:
    """Dies as the victim, having noted the time. Elsewhere: (the steps that were finished, when an error came, its text)."""

    def die() -> None:
        Path(note).write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)

    def arm(step: int, model: torch.nn.Module) -> Callable[[], None]:
        if dist.get_rank() != victim or step != fatal_step:
            return lambda: None
        if place[0] == "optimizer":
            return die
        hook(model, Place(*place), die)
        return lambda: None

    logging.getLogger("ladderkern").setLevel(logging.ERROR)  # each sum that is given up is a warning
    finished = []
    try:
        for done in steps(arm):
            finished.append(done)
    except Exception as error:
        return finished, time.monotonic(), f"{type(error).__name__}: {error}"
    return finished, None, ""


# ---------------------------------------------------------------------------------------------------------- in the session


class Kill(NamedTuple):
    """One drill: who died where, what the others did, and how long after it."""

    size: int
    victim: int
    step: int
    place: Place
    outcome: str
    seconds: list[float]
    messages: list[str]


def judge(answers: Sequence[tuple[str, Any]], expected: Sequence[Any], victim: int, death: float | None) -> str:
    """What happened, in two or three words: IN_TIME or the worst of what is not. ``expected``: the steps of each rank."""
    if death is None or answers[victim][0] != "lost":
        return "nobody died"
    outcomes = {_judge_one(*answers[rank], expected[rank], death) for rank in range(len(answers)) if rank != victim}
    return max(outcomes, key=("error in time", "late", "no error", "crash", "hang", "wrong result").index)


def _judge_one(kind: str, value: Any, expected: Sequence[Any], death: float) -> str:
    if kind != "ok":
        return "hang" if kind == "hung" else "crash"
    finished, when, _ = value
    if finished != expected[: len(finished)]:
        return "wrong result"
    if when is None:
        return "no error"
    return IN_TIME if when - death <= LIMIT else "late"


def drill(folder: Path, kills: int, seed: int, sizes: Sequence[int]) -> Iterator[Kill]:
    """``kills`` drills with each number of ranks in turn; ``seed`` draws who dies, and where."""
    draw = random.Random(seed)
    launcher = Launcher(folder)
    try:
        runs = {size: launcher(size, undisturbed) for size in sizes}
        for i in range(kills):
            size = sizes[i % len(sizes)]
            expected, places = [steps for steps, _ in runs[size]], [places for _, places in runs[size]]
            victim, step = draw.randrange(size), draw.randrange(STEPS)
            place = Place(*draw.choice(places[victim]))
            note = folder / f"death{i}"
            ranks = launcher.start(size)
            try:
                how = {"victim": victim, "fatal_step": step, "place": tuple(place), "note": str(note)}
                answers = ranks.run(__file__, disturbed.__name__, how, grace=2 * LIMIT)
            finally:
                ranks.kill()
            death = float(note.read_text()) if note.exists() else None
            outcome = judge(answers, expected, victim, death)
            raised = [value for kind, value in answers if kind == "ok" and value[1] is not None and death is not None]
            seconds = [when - death for _, when, _ in raised]
            yield Kill(size, victim, step, place, outcome, seconds, [text for *_, text in raised])
    finally:
        launcher.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3])
    options = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for kill in drill(Path(folder), options.kills, options.seed, options.ranks):
            done.append(kill)
            took = ", ".join(f"{seconds:.2f} s" for seconds in kill.seconds)
            where = f"rank {kill.victim} of {kill.size} dies in step {kill.step}, {kill.place}"
            print(f"{len(done)}/{options.kills}  {where}: {kill.outcome}, {took or '-'}", flush=True)
    print()
    print(text_table(("ranks", "kills", "errors", "median s", "max s", "outcomes"), [row(done, n) for n in options.ranks]))
    texts = [text for kill in done for text in kill.messages]
    others = Counter(text.split("\n")[0] for text in texts if "all-reduce of the" not in text)
    named = f"{len(texts) - others.total()} of {len(texts)} errors name the all-reduce of a branch"
    print(f"\nThe group's timeout is {TIMEOUT} s. {named}.")
    for text, count in others.most_common():
        print(f"{count} x {text[:160]}")
    return int(any(kill.outcome != IN_TIME for kill in done))


def row(done: Sequence[Kill], size: int) -> list[str]:
    """A line of the table: the drills of one number of ranks."""
    mine = [kill for kill in done if kill.size == size]
    seconds = [second for kill in mine for second in kill.seconds] or [float("nan")]
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in Counter(kill.outcome for kill in mine).items())
    return [str(size), str(len(mine)), str(len(seconds)), f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}", outcomes]


if __name__ == "__main__":
    sys.exit(main())
