"""What the property-based tests share (`test_properties.py` of each feature): dtypes, layouts and starts of tensors."""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ladderkern.testing import Guarded, guarded, laid_out

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
dtypes = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**16)

# The same examples in each run, so that CI is no lottery.
properties = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

_LEAST = {"contiguous": 0, "transposed": 2, "column_slice": 1, "every_second": 1}


@st.composite
def places(draw, dims):
    """(layout, offset) of a tensor of ``dims`` dimensions that may be written: how it lies in memory, and where it starts."""
    return draw(st.sampled_from([name for name, least in _LEAST.items() if least <= dims])), draw(st.integers(0, 31))


def placed(tensor, place) -> Guarded:
    """A copy of ``tensor`` at its place, between guard bands."""
    return guarded(laid_out(tensor, *place))
