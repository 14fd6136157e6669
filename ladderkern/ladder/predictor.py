"""How much faster a ladder decodes: an analytical model, checked against what was published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..runtime.text import text_table
from .hardware import DEVICES, device_of, link_of
from .published import published_bound, published_speed_ups, published_speeds
from .shapes import ModelShape, model_shape
from .timing import ARCHITECTURES, Run, phases, without_communication


class Row(NamedTuple):
    """One architecture. Published fields are None where nothing was published for this very run."""

    architecture: str
    seconds: float  # of the whole run
    step_ms: float  # of one token step, after the prompt
    tokens_per_second: float  # new tokens of all sequences, over the whole run
    speed_up: float  # over the standard model
    hidden: float  # share of the standard model's all-reduce time that is not waited for
    basis: str  # "prediction"; "fit": the model's numbers were fitted to this run; "published": an input
    published_tokens_per_second: float | None
    published_speed_up: float | None


class Prediction(NamedTuple):
    """The rows of :data:`ARCHITECTURES`, in this order, and what they rest on."""

    run: Run
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def row(self, architecture: str) -> Row:
        """The row of one of ARCHITECTURES."""
        return self.rows[ARCHITECTURES.index(architecture)]

    def to_text(self) -> str:
        """The table, its setting above it and what it rests on below."""
        run = self.run
        setting = (
            f"Prediction: {run.shape.name}, TP {run.tp}, batch {run.batch}, prompt {run.prompt}, {run.new_tokens} new tokens; "
            f"{run.device.title}; {run.link.title}; {1e6 * run.all_reduce:.1f} us an all-reduce"
        )
        header = ("", "ms a step", "tokens/s", "published", "off", "speed-up", "published", "not waited for", "basis")
        rows = [
            (
                row.architecture,
                f"{row.step_ms:.2f}",
                f"{row.tokens_per_second:.2f}",
                *_beside(row.tokens_per_second, row.published_tokens_per_second),
                f"{row.speed_up:.3f}",
                "" if row.published_speed_up is None else f"{row.published_speed_up:.3f}",
                f"{row.hidden:.0%}",
                row.basis,
            )
            for row in self.rows
        ]
        return "\n".join((setting, "", text_table(header, rows), "", *self.notes))


def _beside(ours: float, published: float | None) -> tuple[str, str]:
    return ("", "") if published is None else (f"{published:.2f}", f"{100 * (ours / published - 1):+.1f} %")


def predict(
    model: Any = "llama-3-70b",
    tp: int = 8,
    batch: int = 1,
    nvlink: bool | None = None,
    *,
    link: Any = None,
    device: Any = "h100",
    prompt: int = 1024,
    new_tokens: int = 512,
    ladder_layers: int | Sequence[int] | None = None,
    no_communication: float | None = None,
) -> Prediction:
    """How fast a decoder is predicted to run as a standard, ladder, hybrid and parallel model.

    Args:
        model: what :func:`.shapes.model_shape` takes: a name as "llama-3-70b" or "70b", a transformers config, a folder.
        tp: ranks that share each layer.
        batch: sequences.
        nvlink: True for ``link="nvlink"`` (the default), False for ``link="no-p2p"``.
        link: the name of one of :data:`.hardware.LINKS`, a Link (as of
            ``calibrate(group).link()``), or an AlphaBeta.
        device: the name of one of :data:`.hardware.DEVICES`, or a Device.
        prompt, new_tokens: of each sequence.
        ladder_layers: of the hybrid: an int n, the last n; a sequence, those; None, the last half.
        no_communication: seconds of the whole run without all-reduces, where you have measured it. None: the published run
            where there is one with this model, tp, batch (above 1), prompt and new_tokens, and the device is "h100"; else the
            roofline's.

    Raises:
        ValueError: a name that is not known, a number that is not positive, a tp that does not divide the heads, a layer that
            the model does not have, or both nvlink and link.
    """
    if nvlink is not None and link is not None:
        raise ValueError("nvlink and link must not both be given")
    shape, name = model_shape(model), link or ("no-p2p" if nvlink is False else "nvlink")
    _check(shape, tp=tp, batch=batch, prompt=prompt, new_tokens=new_tokens)
    each = phases(shape, device_of(device), tp, batch, prompt, new_tokens)
    if no_communication is not None and no_communication <= 0:
        raise ValueError(f"no_communication must be more than 0, got {no_communication}")
    measured, basis = no_communication, "given"
    if measured is None and batch > 1 and device == "h100":
        measured, basis = published_bound(shape.name, batch, tp, prompt, new_tokens), "published"
    if measured is not None:
        factor = measured / without_communication(shape, each).total
        each = (each[0].slowed(factor), each[1].slowed(factor))
    layers = _hybrid_layers(shape.layers, ladder_layers)
    run = Run(shape, device_of(device), link_of(name), tp, batch, prompt, new_tokens, layers, each)
    return _table(run, name if isinstance(name, str) else "", None if measured is None else basis)


def _check(shape: ModelShape, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if shape.heads % numbers["tp"]:
        raise ValueError(f"tp must divide the {shape.heads} heads of {shape.name}, got {numbers['tp']}")


def _hybrid_layers(count: int, wanted: int | Sequence[int] | None) -> tuple[int, ...]:
    if wanted is None or isinstance(wanted, int):
        last = count // 2 if wanted is None else wanted
        chosen: tuple[int, ...] = tuple(range(max(count - last, -1), count))
    else:
        chosen = tuple(wanted)
    if not all(0 <= layer < count for layer in chosen):
        raise ValueError(f"ladder_layers must name layers of the {count} that the model has, got {wanted!r}")
    return chosen


def _table(run: Run, link: str, bound: str | None) -> Prediction:
    shape, known = run.shape, run.device is DEVICES["h100"]
    setting = (run.batch, run.tp, run.prompt, run.new_tokens)
    speeds = published_speeds(shape.name, link, *setting) if known else None
    speed_ups = published_speed_ups(shape.name, link, *setting) if known else None
    standard = run.time("standard")
    rows = []
    for architecture in ARCHITECTURES:
        seconds, step, waiting = run.time(architecture)
        field = architecture.replace(" ", "_")
        speed = getattr(speeds, field, None)
        ratio = getattr(speed_ups, field, None) if speeds is None else speed and speed / speeds.standard
        basis = "prediction" if ratio is None or bound == "given" else "fit"
        rows.append(
            Row(
                architecture,
                seconds,
                1e3 * step,
                run.batch * run.new_tokens / seconds,
                standard.total / seconds,
                1 - waiting / standard.waiting if standard.waiting else 0.0,
                bound if bound is not None and architecture == "no communication" else basis,
                speed,
                ratio,
            )
        )
    return Prediction(run, tuple(rows), _notes(run, bound))


def _notes(run: Run, bound: str | None) -> tuple[str, ...]:
    sources = {
        "published": "the published time without communication, an input",
        "given": "the given time without communication",
        None: run.device.basis,
    }
    first, last = (f"layer {run.ladder_layers[end]}" if run.ladder_layers else "none" for end in (0, -1))
    return (
        f"Compute: {sources[bound]}.",
        f"All-reduce: {run.link.basis}.",
        f"Hybrid: {len(run.ladder_layers)} of {run.shape.layers} layers are ladder layers ({first} to {last}).",
        "Basis: fit = the model's numbers were fitted to the published run beside it; published, given = an input; the rest is",
        "prediction. Tokens/s are of the whole run, prompt included. Speed alone: a ladder must be trained as one.",
    )
