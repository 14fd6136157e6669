"""``python -m ladderkern demo``: SPAM through gradient spikes, the joint loss, PRM step scores, ladder wiring."""

from __future__ import annotations

import importlib.util
import webbrowser
from collections.abc import Sequence

from .demo_parts import missing, run_parts
from .demo_report import Options
from .failed import Failed


def run(parts: Sequence[str], options: Options, show: bool) -> None:
    """Run parts of the demo, and show the report if asked. Raises Failed when something they need is not installed."""
    lacking = missing(parts)
    if lacking:
        wanted = " ".join(f"'{name}'" if "[" in name else name for name in lacking)
        raise Failed(f"The demo needs {' and '.join(lacking)}: pip install {wanted}")
    if {"spam", "ladder"} & set(parts) and importlib.util.find_spec("pydoc_data") is None:
        raise Failed("The demo trains on pydoc_data.topics, which this Python was built without.")
    path = run_parts(parts, options)
    if show:
        webbrowser.open(path.absolute().as_uri())
