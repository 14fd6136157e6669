"""The command line: ``python -m ladderkern``, or ``ladderkern`` where scripts are on the path.

The commands are declared in :mod:`.commands`, which alone needs click; importing ladderkern does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 called wrongly."""
    try:
        import click  # noqa: F401
    except ImportError:
        print("The commands of ladderkern need click: pip install click", file=sys.stderr)
        return 1
    from .commands import commands

    try:
        commands.main(args=None if argv is None else list(argv))
    except SystemExit as end:  # how click returns
        return end.code if isinstance(end.code, int) else 1
    return 0
