"""From how slow a link a ladder pays, and what to do about it in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .hardware import LINKS
from .predictor import Prediction, Run

WORTH = 1.05  # the speed-up for which somebody might retrain a model
FROM, TO, POINTS = 1e-6, 1e-3, 91  # all-reduce times that are looked at, in seconds
_TIMES = tuple(FROM * (TO / FROM) ** (i / (POINTS - 1)) for i in range(POINTS))


class Sweep(NamedTuple):
    """Speed-ups over the standard model where every all-reduce of the link takes longer or shorter, by one factor."""

    all_reduce: tuple[float, ...]  # seconds, of one token step
    speed_ups: dict[str, tuple[float, ...]]  # by architecture


class Between(NamedTuple):
    """The shortest and the longest all-reduce, in seconds, of 1 us to 1 ms, for which something holds."""

    shortest: float
    longest: float


def sweep(run: Run, architectures: tuple[str, ...]) -> Sweep:
    """The speed-ups of a run on links with all-reduces of 1 us to 1 ms.

    Raises:
        ValueError: the run has one rank.
    """
    runs = [_at(run, time) for time in _TIMES]
    return Sweep(_TIMES, {name: tuple(each.speed_up(name) for each in runs) for name in architectures})


def break_even(run: Run, worth: float = WORTH) -> Between | None:
    """The all-reduces for which a ladder is ``worth`` times as fast as the standard model; None if there are none.

    Raises:
        ValueError: the run has one rank.
    """
    return _between(run, lambda at: at.speed_up("ladder") >= worth)


def break_even_with_parallel(run: Run) -> Between | None:
    """Those for which a ladder is as fast as parallel attention and MLP, which hides nothing and halves the all-reduces.

    Raises:
        ValueError: the run has one rank.
    """
    return _between(run, lambda at: at.time("ladder").total <= at.time("parallel").total)


def _at(run: Run, all_reduce: float) -> Run:
    if run.tp == 1:
        raise ValueError("tp must be at least 2 to compare links, got 1")
    return run._replace(link=run.link.times(all_reduce / run.all_reduce))


def _between(run: Run, holds: Callable[[Run], bool]) -> Between | None:
    def edge(inside: float, outside: float) -> float:
        for _ in range(20):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if holds(_at(run, middle)) else (inside, middle)
        return inside

    places = [i for i, time in enumerate(_TIMES) if holds(_at(run, time))]
    if not places:
        return None
    first, last = places[0], places[-1]
    return Between(
        edge(_TIMES[first], _TIMES[first - 1]) if first > 0 else FROM,
        edge(_TIMES[last], _TIMES[last + 1]) if last < POINTS - 1 else TO,
    )


def advice(prediction: Prediction, worth: float = WORTH) -> str:
    """What to do, in one sentence."""
    run = prediction.run
    if run.tp == 1:
        return "On one rank there is no all-reduce to hide: keep the standard model."
    ladder, block = (prediction.row(name).speed_up for name in ("ladder", "parallel"))
    what = (
        f"With this {microseconds(run.all_reduce)} all-reduce a ladder is predicted to be {ladder:.2f}x as fast as the standard"
    )
    what += " model"
    if ladder < worth:
        enough = break_even(run, worth)
        where = "on no link" if enough is None else f"from {microseconds(enough.shortest)} to {microseconds(enough.longest)}"
        return f"{what}, too little to retrain a model for; {worth:.2f}x it would be {where}."
    if run.link == LINKS["nvlink"] and run.tp in LINKS["fast"].protocols:
        fast = run._replace(link=LINKS["fast"])
        gain = run.time("standard").total / fast.time("standard").total
        left = fast.speed_up("ladder")
        rest = "too little to retrain for" if left < worth else "so take that first, and retrain only if the rest is worth it"
        return (
            f"{what}, but a {microseconds(fast.all_reduce)} one-shot or multimem all-reduce makes the standard model itself "
            f"{gain:.2f}x as fast and leaves a ladder {left:.2f}x, {rest}."
        )
    if block >= ladder:
        return (
            f"{what}, and parallel attention and MLP {block:.2f}x with one all-reduce a layer: if you train anew, compare both."
        )
    return f"{what} (parallel attention and MLP: {block:.2f}x): worth it if you can train or retrain the model as a ladder."


def microseconds(seconds: float) -> str:
    """Two digits or more."""
    return f"{1e6 * seconds:.{1 if seconds < 1e-5 else 0}f} us"
