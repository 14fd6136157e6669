"""Predicted speed-ups against how long an all-reduce takes."""

from __future__ import annotations

from pathlib import Path

from ..ladder.advice import FROM, TO, break_even, break_even_with_parallel, microseconds, sweep
from ..ladder.hardware import LINKS
from ..ladder.predictor import Prediction

_CURVES = {
    "no communication": ("#888888", ":"),
    "ladder, perfect overlap": ("#1f4fd8", "--"),
    "ladder": ("#1f4fd8", "-"),
    "hybrid": ("#2a9d5c", "-"),
    "parallel": ("#ff9f1c", "-"),
}


def write_plot(prediction: Prediction, worth: float, path: Path) -> None:
    """Draw the prediction on links of any speed. Raises ValueError for one rank, or a format that is not known."""
    from matplotlib.figure import Figure

    run = prediction.run
    swept = sweep(run, tuple(_CURVES))
    times = [1e6 * seconds for seconds in swept.all_reduce]
    figure = Figure(figsize=(9, 5.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    for name, (colour, style) in _CURVES.items():
        axes.plot(times, swept.speed_ups[name], color=colour, linestyle=style, linewidth=1.8, label=name)
    top = max(1.2, 1.15 * max(swept.speed_ups["ladder, perfect overlap"]))
    for title, style, pays in (
        (f"ladder {worth:g}x", "-", break_even(run, worth)),
        ("ladder as fast as parallel", "-.", break_even_with_parallel(run)),
    ):
        if pays is not None:
            label = f"break-even, {title}: {microseconds(pays.shortest)} to {microseconds(pays.longest)}"
            for seconds in pays:
                axes.axvline(1e6 * seconds, color="#d62728", linewidth=1.2, linestyle=style, label=label)
                label = "_"  # one entry for both edges
    # Links that the table has for about this world size; this one instead of its own entry.
    marks = {
        name: link.seconds(run.phases[-1].message, run.tp)
        for name, link in LINKS.items()
        if link != run.link and min(link.protocols) <= run.tp <= max(link.protocols)
    }
    for name, seconds in (*marks.items(), ("this link", run.all_reduce)):
        if FROM < seconds < TO:
            axes.axvline(1e6 * seconds, color="#bbbbbb", linewidth=1, linestyle="-" if name == "this link" else ":", zorder=0)
            axes.text(1e6 * seconds, top, f"{name} ", rotation=90, va="top", ha="right", fontsize=8, color="#555555")
    axes.set(xscale="log", xlim=(1e6 * FROM, 1e6 * TO), ylim=(0.95, top))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("time of one token step's all-reduce, microseconds (a slower link to the right)")
    axes.set_ylabel("predicted speed-up over the standard model")
    axes.set_title(f"{run.shape.name}, TP {run.tp}, batch {run.batch}, {run.device.title}: prediction", fontsize=11)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.9), fontsize=8, framealpha=0.95)
    figure.savefig(path)
