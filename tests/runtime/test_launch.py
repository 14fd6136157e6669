"""What launches of Triton kernels keep on the device."""

import pytest
import torch

pytestmark = pytest.mark.interpreter


def test_tables_are_bounded():
    from ladderkern.runtime.launch import TableCache

    tables = TableCache(size=2)
    for key in (0, 1, 0, 2, 0, 1):
        table = tables.get(key, torch.device("cpu"), lambda: (torch.tensor([key]), key))  # noqa: B023
        assert table.data.item() == table.plan == key
    assert tables.uploads == 4
