"""``python -m ladderkern bench``: ladderkern's ops against what you would run instead, on this machine."""

from __future__ import annotations

import gc
import importlib.util
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..testing.oracle import assert_within_budget
from ..testing.timing import Measured, Plan, Row, Spread, keep_freed_memory, machine, measure, write_csv
from .bench_cases import CASES, COMPILED, At, Builder, Call, Case
from .failed import Failed

OURS, AGAIN, PASS = "ours", "ours again", "plain pass"
Progress = Callable[[str, Iterable[Any]], Iterable[Any]]  # (what is done, over what) -> the same, shown


class Comparison(NamedTuple):
    """What became of one case."""

    name: str
    title: str
    rows: list[Row]
    notes: list[str]  # what was left out, and why


def place(device: str | None, dtype: str | None, quick: bool) -> At:
    """Where to run: a GPU where there is one; bfloat16 there, float32 on a CPU. Raises Failed for a device that is not here."""
    on_gpu = torch.cuda.is_available() if device is None else device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise Failed("--device cuda: torch sees no GPU here")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    chosen = known[dtype] if dtype else (torch.bfloat16 if on_gpu else torch.float32)
    return At(torch.device("cuda" if on_gpu else "cpu"), chosen, "quick" if quick else "full")


def compared(names: Sequence[str], at: At, progress: Progress) -> Iterator[Comparison]:
    """Check the cases of these names, then time one after the other. Raises Failed before any is timed if one is wrong."""
    for name in names:  # all of them first: timing takes minutes
        check(name, at)
    if at.device.type == "cpu":
        keep_freed_memory()
    for name in names:
        yield _compare(name, at, progress)


def check(name: str, at: At) -> None:
    """Hold ours against plain PyTorch in float64, by the budget of :func:`.assert_within_budget`. Raises Failed."""
    small, exact = (CASES[name](at._replace(size="check", exact=exact)) for exact in (False, True))
    ours, eager, oracle = (build().function() for build in (small.ours, small.plain, exact.plain))
    results = zip(small.same(ours), eager, oracle, strict=True)
    for i, result in enumerate(results):
        try:
            assert_within_budget(*result, f"result {i}")
        except AssertionError as error:
            raise Failed(f"{name} is not timed, because it is wrong here: {error}") from None


def _compare(name: str, at: At, progress: Progress) -> Comparison:
    case, notes = _fitting(CASES[name], at)
    builders: dict[str, Builder] = {OURS: case.ours, AGAIN: case.ours}
    wanted = {peer: build for peer, build in case.peers.items() if peer != COMPILED or at.size == "full"}
    for peer, build in progress(f"{name}: preparing", list(wanted.items())):
        refused = _refused(build)
        if refused:
            notes.append(f"{peer} does not run here: {refused}")
        else:
            builders[peer] = build
    if not builders.keys() & wanted.keys():
        raise Failed(f"{name}: nothing to compare with: {'; '.join(notes)}")
    pass_bytes = 0
    if case.least and at.size == "full":  # a small case lies in caches
        builders[PASS], pass_bytes = _plain_pass(at)
    plan = _plan(at, case, len(builders))
    wait = torch.cuda.synchronize if at.device.type == "cuda" else (lambda: None)
    measured = measure(
        dict(builders), plan, progress=lambda rounds: progress(f"{name}: timing", list(rounds)), synchronize=wait
    )
    return Comparison(name, case.title, _rows(case, measured, [peer for peer in wanted if peer in builders], pass_bytes), notes)


def _rows(case: Case, measured: Measured, peers: Sequence[str], pass_bytes: int) -> list[Row]:
    control = measured.ratio(AGAIN, OURS)
    share = measured.ratio(PASS, OURS).median * case.least / pass_bytes if pass_bytes else None
    return [Row(case.title, f"{peer} / ours", measured.ratio(peer, OURS), control, share) for peer in peers]


def _fitting(make: Callable[[At], Case], at: At) -> tuple[Case, list[str]]:
    """The case, made smaller until all that is timed together fills no more than half of the memory that is free."""
    free = _free_memory(at.device)
    for halved in range(12):
        case = make(at._replace(halved=halved))
        if case.held * (len(case.peers) + 2) <= free / 2:
            break
    return case, [f"{2**halved} times smaller than usual, to fit into {free / 2**30:.1f} GiB"] if halved else []


def _free_memory(device: torch.device) -> float:
    """Bytes that can be had without swapping; infinite where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def _refused(build: Builder) -> str:
    """Why a peer does not run, in one line; "" where it does."""
    inductor, dynamo = (logging.getLogger(f"torch._{name}") for name in ("inductor", "dynamo"))
    levels = inductor.level, dynamo.level
    inductor.setLevel(logging.CRITICAL)
    dynamo.setLevel(logging.CRITICAL)
    try:
        build().step()
    except Exception as error:  # of code that is not ours, in whatever state this machine is
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    finally:
        inductor.setLevel(levels[0])
        dynamo.setLevel(levels[1])
        gc.collect()
    return ""


def _plain_pass(at: At) -> tuple[Builder, int]:
    """(one operation that reads and writes each number of a large tensor, in place, and the bytes that it moves)."""
    (numel,) = at.pick(check=(1 << 10,), quick=(16 << 20,), cpu=(64 << 20,), cuda=(256 << 20,))

    def build() -> Call:
        numbers = torch.ones(numel, device=at.device)
        return Call(numbers.neg_)

    return build, 2 * 4 * numel


def _plan(at: At, case: Case, peers: int) -> Plan:
    calls = case.calls
    if at.size != "full":
        return Plan(rebuilds=2, rounds=3, steps=calls, untimed=1)
    return Plan(rebuilds=peers, rounds=2, steps=calls, untimed=1)


def where(at: At) -> dict[str, Any]:
    """The machine, its versions, and how the run was set up."""
    device = torch.cuda.get_device_name(at.device) if at.device.type == "cuda" else "cpu"
    return {**machine(["triton"]), "device": device, "dtype": str(at.dtype).removeprefix("torch."), "sizes": at.size}


def to_text(comparison: Comparison) -> str:
    """A case's ratios, 80 columns wide."""
    first = comparison.rows[0]
    lines = [comparison.title]
    for row in comparison.rows:
        lines.append(f"  {row.quantity.removesuffix(' / ours'):24}  {times(row.value.median):>8}   {_quartiles(row.value)}")
    assert first.control is not None
    lines.append(f"  two of ours {times(first.control.median)} {_quartiles(first.control)}")
    if first.share is not None:
        lines[-1] += f"; ours is at {100 * first.share:.0f} % of the bandwidth"
    return "\n".join((*lines, *(f"  {note}" for note in comparison.notes)))


def _quartiles(ratio: Spread) -> str:
    return f"({times(ratio.low)[:-2]} to {times(ratio.high)[:-2]})"


def times(ratio: float) -> str:
    """A ratio as it is read, with three figures: "12.3 ×"."""
    return f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f} ×"


def legend(at: At) -> str:
    """How to read :func:`to_text`."""
    lines = [
        "A peer's time over ours, median and quartiles: above 1, ladderkern is faster.",
        "Two of ours: one op built twice, 1 but for noise; trust no ratio within it.",
        "Bandwidth: the least bytes at the speed of torch's x.neg_(), over our time.",
    ]
    return "\n".join(lines if at.size == "full" else lines[:2])


def heading(at: At) -> str:
    """What ran where."""
    facts = where(at)
    place = facts["cpu"] if facts["device"] == "cpu" else facts["device"]
    lines = [f"{place}, {facts['threads']} threads", f"torch {facts['torch version']}; native library {facts['native']}"]
    if at.size == "quick":
        lines.append("Quick: small sizes, few rounds, no torch.compile. Rough ratios.")
    return "\n".join(lines)


def to_json(comparisons: Sequence[Comparison], at: At) -> dict[str, Any]:
    """The same for programs."""
    cases = [
        {"case": each.name, "title": each.title, "notes": each.notes, "ratios": [row.record() for row in each.rows]}
        for each in comparisons
    ]
    return {"where": where(at), "cases": cases}


def prepare(table: Path | None, plot: Path | None) -> None:
    """See before minutes of timing that their results can be kept. Raises Failed."""
    if plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise Failed("--plot needs matplotlib: pip install matplotlib")
        from matplotlib.backend_bases import FigureCanvasBase

        known = FigureCanvasBase.get_supported_filetypes()
        if plot.suffix[1:].lower() not in known:
            raise Failed(f"{plot}: the ending of a plot must be one of {', '.join(sorted(known))}")
    for path in (table, plot):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.open("ab").close()
            except OSError as error:
                raise Failed(f"{path}: {error.strerror}") from None


def write(comparisons: Sequence[Comparison], at: At, table: Path | None, plot: Path | None) -> list[Path]:
    """Write all ratios as CSV and as a picture, where asked for; returns where. Raises Failed where the system does not."""
    try:
        if table is not None:
            write_csv(table, [row for each in comparisons for row in each.rows], where(at))
        if plot is not None:
            from .bench_plot import Picture, write_plot

            title = "ladderkern against what you would run instead" + ("; quick, rough" if at.size == "quick" else "")
            write_plot(Picture(comparisons, title, "; ".join(heading(at).splitlines()[:2])), plot)
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from None
    return [path for path in (table, plot) if path is not None]
