"""``python -m ladderkern predict``: what a ladder would gain on your model and link, before you train one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ..ladder.advice import advice, break_even, break_even_with_parallel
from ..ladder.hardware import DEVICES, AlphaBeta, Device
from ..ladder.predictor import Prediction, predict
from .failed import Failed


def given_link(microseconds: float, gigabytes: float) -> AlphaBeta:
    """A link by its two numbers. Raises ValueError for a negative time, or a bandwidth that is not above 0."""
    if microseconds < 0 or gigabytes <= 0:
        raise ValueError(f"must be a time of at least 0 and a bandwidth above 0, got {microseconds:g} and {gigabytes:g}")
    return AlphaBeta(microseconds * 1e-6, gigabytes * 1e9)


def given_device(terabytes: float, teraflop: float) -> Device:
    """A device of which two numbers are known; the others are the H100's. Raises ValueError unless both are above 0."""
    if min(terabytes, teraflop) <= 0:
        raise ValueError(f"must be two numbers above 0, got {terabytes:g} and {teraflop:g}")
    return DEVICES["h100"]._replace(
        title=f"given: {terabytes:g} TB/s, {teraflop:g} TFLOP/s",
        vector_bandwidth=terabytes * 1e12,
        matrix_bandwidth=terabytes * 1e12,
        matmul_rate=teraflop * 1e12,
        basis="given; the overhead of a layer and the traffic of the cache are fits to published runs on H100",
    )


def predicted(**setting: Any) -> Prediction:
    """:func:`ladderkern.ladder.predict`. Raises Failed for a setting that cannot be."""
    try:
        return predict(**setting)
    except (OSError, ValueError) as error:
        raise Failed(str(error)) from None


def draw(prediction: Prediction, worth: float, path: Path) -> Path | None:
    """Draw speed-up against link speed; returns where, None for one rank, which has no link. Raises Failed if it cannot."""
    if prediction.run.tp == 1:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        raise Failed("The plot needs matplotlib: pip install matplotlib, or --no-plot")
    from .predict_plot import write_plot

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_plot(prediction, worth, path)
    except (OSError, ValueError) as error:  # of the system, of a format that matplotlib does not write
        raise Failed(str(error)) from None
    return path


def to_text(prediction: Prediction, worth: float) -> str:
    """The table, and what to do."""
    return f"{prediction.to_text()}\n\n{advice(prediction, worth)}"


def to_json(prediction: Prediction, worth: float) -> dict[str, Any]:
    """The same for programs: times in seconds, except where a name says otherwise; break-even None where there is none."""
    run = prediction.run
    edges = (None, None) if run.tp == 1 else (break_even(run, worth), break_even_with_parallel(run))
    return {
        "model": run.shape.name,
        "tp": run.tp,
        "batch": run.batch,
        "prompt": run.prompt,
        "new_tokens": run.new_tokens,
        "device": run.device.title,
        "link": run.link.title,
        "all_reduce": run.all_reduce,
        "ladder_layers": list(run.ladder_layers),
        "architectures": [row._asdict() for row in prediction.rows],
        "worth": worth,
        "all_reduces_worth_it": edges[0] and edges[0]._asdict(),
        "all_reduces_as_fast_as_parallel": edges[1] and edges[1]._asdict(),
        "advice": advice(prediction, worth),
        "notes": list(prediction.notes),
    }
