"""What tests, benchmarks and users share: the budget rule, inputs in awkward layouts, guard bands and poisoned memory."""

from .inputs import EMPTY_SHAPES, LAYOUTS, Guarded, floats, guarded, laid_out
from .oracle import assert_within_budget, budget
from .poison import poisoned_allocations

__all__ = [
    "EMPTY_SHAPES",
    "LAYOUTS",
    "Guarded",
    "assert_within_budget",
    "budget",
    "floats",
    "guarded",
    "laid_out",
    "poisoned_allocations",
]
