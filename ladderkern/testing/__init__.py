"""What tests, benchmarks and users share: the budget rule, awkward inputs, guard bands, poisoned memory, traffic, timing."""

from . import timing, work
from .bits import fingerprint_of
from .inputs import EMPTY_SHAPES, LAYOUTS, Guarded, floats, guarded, laid_out
from .oracle import assert_within_budget, budget
from .poison import poisoned_allocations
from .traffic import Launch, counted_traffic

__all__ = [
    "EMPTY_SHAPES",
    "LAYOUTS",
    "Guarded",
    "Launch",
    "assert_within_budget",
    "budget",
    "counted_traffic",
    "fingerprint_of",
    "floats",
    "guarded",
    "laid_out",
    "poisoned_allocations",
    "timing",
    "work",
]
