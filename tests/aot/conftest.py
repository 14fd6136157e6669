"""Tests here see their neighbours; ``LADDERKERN_AOT=update`` writes the budgets that they compiled."""

import csv
import importlib.util
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # with --import-mode=importlib a test does not see its neighbours
collect_ignore = [] if importlib.util.find_spec("triton") else ["test_aot.py", "test_compiler.py"]


def pytest_terminal_summary(terminalreporter):
    if os.environ.get("LADDERKERN_AOT") != "update":
        return
    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    lines = [line for report in reports for key, line in getattr(report, "user_properties", ()) if key == "budget"]
    with (FOLDER / "budgets.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("call", "kernel", "target", "registers", "shared", "narrow", "spilled"))
        writer.writerows(sorted({tuple(line) for line in lines}))
