"""The order of a ladder: which stream each branch reads, and when it is formed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Join(NamedTuple):
    """One stream that branches read: what is added to the stream formed last, and whose norms are taken of the sum."""

    updates: tuple[int, ...]  # branches whose outputs are added
    readers: tuple[int, ...]  # branches that read the sum


class Schedule(NamedTuple):
    """What each branch reads, what stands before it, and what is added to the stream formed last at the end."""

    sources: tuple[int, ...]  # the number of the stream that each branch reads: how many outputs it holds
    joins: tuple[tuple[Join, ...], ...]  # one tuple a branch
    drain: tuple[int, ...]


def delays(delay: int | Sequence[int], branches: int) -> tuple[int, ...]:
    """One delay a branch.

    Raises:
        TypeError, ValueError: anything but an int of at least 0, or one for each branch.
    """
    each = tuple(delay) if isinstance(delay, Sequence) else (delay,) * branches
    if not all(isinstance(d, int) and not isinstance(d, bool) for d in each):
        raise TypeError(f"delay must be an int or a sequence of one int for each branch, got {delay!r}")
    if len(each) != branches:
        raise ValueError(f"delay must be an int or one for each of the {branches} branches, got {len(each)} of them")
    if any(d < 0 for d in each):
        raise ValueError(f"delay must be at least 0, got {delay!r}")
    return each


def schedule(each: Sequence[int]) -> Schedule:
    """The schedule of branches with these delays.

    Stream n is the input plus the outputs of the first n branches. Branch i reads stream i - delay, or 0 if that is negative.
    A stream is formed just before its first reader computes, and only if it has one: outputs that nobody reads alone are
    added together with the next.
    """
    sources = [max(i - d, 0) for i, d in enumerate(each)]
    readers = {stream: tuple(i for i, source in enumerate(sources) if source == stream) for stream in sorted(set(sources))}
    joins: list[tuple[Join, ...]] = []
    formed = -1
    for source in sources:
        streams = [stream for stream in readers if formed < stream <= source]
        bounds = [max(formed, 0), *streams]
        pairs = zip(bounds, streams, strict=False)
        joins.append(tuple(Join(tuple(range(low, high)), readers[high]) for low, high in pairs))
        formed = max(formed, source)
    return Schedule(tuple(sources), tuple(joins), tuple(range(max(formed, 0), len(sources))))
