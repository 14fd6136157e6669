"""Emulated CUDA kernels: where they are, and the order in which their threads run."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours


@pytest.fixture(autouse=True)
def order_of_threads():
    """LADDERKERN_EMULATION_SEED picks another order."""
    from emulated import MODULE

    MODULE.seed(int(os.environ.get("LADDERKERN_EMULATION_SEED", "0")))


def pytest_terminal_summary(terminalreporter):
    """LADDERKERN_EMULATION_TABLE=1: what each kernel did in all tests together."""
    if os.environ.get("LADDERKERN_EMULATION_TABLE") != "1" or "emulated" not in sys.modules:
        return
    from emulated import MODULE, SANITIZED

    columns = ("kernel", "launches", "blocks", "threads", "barriers", "warp operations")
    accounts = MODULE.accounts()
    rows = [(name, *accounts[name]) for name in sorted(accounts) if name.startswith(("norm_", "prm_", "spam_"))]
    terminalreporter.section("emulated CUDA kernels" + (", with AddressSanitizer and UBSan" if SANITIZED else ""))
    for row in (columns, *rows):
        terminalreporter.write_line(f"{row[0]:34s}" + "".join(f"{cell:>17}" for cell in row[1:]))
