"""How peers are timed: the package's own way, which ``python -m ladderkern bench`` takes too."""

from ladderkern.testing.timing import (
    Measured,
    Plan,
    Row,
    Spread,
    Target,
    keep_freed_memory,
    machine,
    measure,
    table,
    write_csv,
)

__all__ = ["Measured", "Plan", "Row", "Spread", "Target", "keep_freed_memory", "machine", "measure", "table", "write_csv"]
