"""The budgets of machine code in budgets.csv, and the table that ``--tables`` prints."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

from compiler import DEVICES, Code, occupancy

FILE = Path(__file__).with_name("budgets.csv")
COLUMNS = ("registers", "shared", "narrow", "spilled")
HEADING = (
    "call, kernel",
    "target",
    "threads",
    "registers",
    "shared",
    "occupancy",
    "16-byte loads, stores",
    "narrower",
    "spilled",
)


@functools.cache
def budgets() -> dict[tuple[str, str, str], dict[str, int]]:
    """{(call, kernel, target): {column: budget}}"""
    with FILE.open(newline="") as file:
        return {
            (line["call"], line["kernel"], line["target"]): {name: int(line[name]) for name in COLUMNS}
            for line in csv.DictReader(file)
        }


def _held(code: Code) -> dict[str, int]:
    return {name: getattr(code, name) for name in COLUMNS}


def over_budget(call: str, kernel: str, target: str, code: Code) -> list[str]:
    """What the code needs or holds more of than its budget allows."""
    budget, held = budgets()[call, kernel, target], _held(code)
    return [f"{kernel}: {name} {held[name]} > {budget[name]}" for name in COLUMNS if held[name] > budget[name]]


def budget_of(call: str, kernel: str, target: str, code: Code) -> tuple[str | int, ...]:
    """A new line of the file. Registers are rounded up to the step in which they are given out, and one step more."""
    return call, kernel, target, *{**_held(code), "registers": (code.registers // 8 + 2) * 8}.values()


def cells(name: str, target: str, code: Code) -> tuple[str | int, ...]:
    """The line of a kernel under ``HEADING``."""
    wide = f"{code.loads[16]}, {code.stores[16]}"
    share = f"{100 * occupancy(code, DEVICES[target]):.0f} %"
    return name, target, code.threads, code.registers, code.shared, share, wide, code.narrow, code.spilled
