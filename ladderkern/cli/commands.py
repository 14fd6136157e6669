"""The commands of ``python -m ladderkern``: their options and their help; the work is in the modules that they call."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import __version__
from ..ladder.advice import WORTH
from ..ladder.hardware import LINKS
from ..ladder.shapes import MODELS
from ..runtime.backend import BackendUnavailable
from ..runtime.info import info
from ..runtime.machine import cores
from .bench_cases import CASES
from .demo_parts import PARTS
from .failed import Failed
from .predict import given_device, given_link
from .prm_file import FORMAT

T = TypeVar("T")
FILE = click.Path(path_type=Path, dir_okay=False)


class Commands(click.Group):
    """Commands that end with exit code 1 and one line where they fail."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Failed, BackendUnavailable) as failed:
            click.echo(str(failed), err=True)
            ctx.exit(1)


def examples(*lines: str) -> str:
    """Command lines as an epilog that click does not wrap."""
    return "\n".join(("\b", "Examples:", *(f"  python -m ladderkern {line}" for line in lines)))


def verbatim(text: str) -> str:
    """Paragraphs that click does not wrap."""
    return "\n\n".join("\b\n" + paragraph for paragraph in text.strip().split("\n\n"))


def made(make: Callable[..., T]) -> Callable[[Any, Any, Any], T | None]:
    """A callback that makes an option's values into what they mean; a ValueError is a wrong call."""

    def callback(context: Any, parameter: Any, values: Any) -> T | None:
        try:
            return make(*values) if values else None
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


def weights(context: Any, parameter: Any, text: str | None) -> tuple[float, ...] | None:
    """Numbers with commas between them."""
    try:
        return None if text is None else tuple(float(weight) for weight in text.split(","))
    except ValueError:
        raise click.BadParameter(f"must be numbers with commas between them, got {text}") from None


def print_json(result: Any) -> None:
    """A result on standard output, for programs."""
    click.echo(json.dumps(result, indent=2, allow_nan=False))


def counted(title: str, things: Iterable[T]) -> Iterator[T]:
    """The things, and on a terminal meanwhile a line that counts them, which is gone at the end."""
    things = list(things)
    for i, thing in enumerate(things):
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{title}, {i + 1} of {len(things)}", nl=False, err=True)
        yield thing
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


def listed(things: dict[str, Any]) -> str:
    """Names, and the first line of what each one's docstring says."""
    width = max(map(len, things))
    return "\n".join(f"  {name:{width}}  {(thing.__doc__ or '').splitlines()[0]}" for name, thing in things.items())


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples("info", "demo --quick --open", "prm report scores.jsonl", "predict --model 8b --tp 4 --link pcie")
    + "\n\nEach command has its own --help, with examples. Exit codes: 0 done, 1 failed, 2 called wrongly.",
)
@click.version_option(__version__, message="ladderkern %(version)s")
def commands() -> None:
    """Fused PyTorch ops for SPAM, token discrepancy, PRM step scores and ladder residuals: see them at work here."""


@commands.command("info", epilog=examples("info", "info --json"))
@as_json
def info_command(as_json: bool) -> None:
    """Show versions, and which backends serve on this machine.

    A backend that does not serve says why. Put the output into a bug report.
    """
    status = info()
    if as_json:
        print_json(status)
    else:
        width = max(map(len, status))
        click.echo("\n".join(f"{name:>{width}}  {value}" for name, value in status.items()))


@commands.command("demo", epilog=examples("demo", "demo --quick --open", "demo --part spam --seed 1 --output spam-1"))
@click.option("--quick", is_flag=True, help="Fewer steps: shows how it works, compares little.")
@click.option("--part", type=click.Choice(PARTS), help=f"Run one part of the {len(PARTS)}.")
@click.option("--seed", default=0, show_default=True, help="Of weights, data order, spikes and masks.")
@click.option(
    "--jobs", type=click.IntRange(1), default=cores, help="Training runs at a time, each on one core.  [default: all cores]"
)
@click.option("--open", "show", is_flag=True, help="Show the report in the browser at the end.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default="demo", show_default=True, metavar="DIR",
    help="Where to write.",
)  # fmt: skip
def demo_command(quick: bool, part: str | None, seed: int, jobs: int, show: bool, output: Path) -> None:
    """Train small models, score a PRM, and write a report.

    Four parts: SPAM against AdamW through gradient spikes, the joint loss against cross-entropy on image tokens, public step
    scores of two PRMs under every strategy, and ladder against standard wiring. The report is one HTML file, report.html,
    with the tables' numbers beside it as CSV.
    """
    from .demo import run
    from .demo_report import Options

    run(PARTS if part is None else (part,), Options(quick, seed, output, jobs), show)


@commands.command(
    "bench",
    short_help="Time the ops against what you would run instead.",
    epilog=verbatim("Cases:\n" + listed(CASES))
    + "\n\n"
    + examples("bench --quick", "bench spam joint --plot ratios.png", "bench norm --dtype bfloat16 --csv norm.csv"),
)
@click.argument("cases", nargs=-1, type=click.Choice(tuple(CASES)), metavar="[CASE]...")
@click.option("--quick", is_flag=True, help="Small sizes, few rounds, no torch.compile: seconds, and rough ratios.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), help="Where to run.  [default: the GPU if there is one]")
@click.option(
    "--dtype", type=click.Choice(("float32", "bfloat16")),
    help="Of logits and activations; optimizers step float32.  [default: float32; bfloat16 on a GPU]",
)  # fmt: skip
@click.option("--csv", "table", type=FILE, metavar="PATH", help="Write the ratios with versions and machine.")
@click.option("--plot", type=FILE, metavar="PATH", help="Draw the ratios (needs matplotlib).")
@as_json
def bench_command(
    cases: tuple[str, ...],
    quick: bool,
    device: str | None,
    dtype: str | None,
    table: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Time ladderkern's ops against what you would run instead, on this machine.

    Of each CASE, or of all, the time of plain PyTorch, of torch.compile and of other rivals over ours. All are built anew again
    and again and timed in turn; beside the ratios stands that of ours to itself, which shows the noise. What computes wrong
    numbers here is not timed: each op is first held against plain PyTorch in float64.
    """
    from . import bench

    at = bench.place(device, dtype, quick)
    bench.prepare(table, plot)
    if not as_json:
        click.echo(bench.heading(at) + "\n")
    comparisons = []
    for comparison in bench.compared(tuple(dict.fromkeys(cases or CASES)), at, counted):
        comparisons.append(comparison)
        if not as_json:
            click.echo(bench.to_text(comparison) + "\n")
    written = bench.write(comparisons, at, table, plot)
    if as_json:
        print_json(bench.to_json(comparisons, at))
    else:
        click.echo("\n".join((bench.legend(at), *(f"Written: {path}" for path in written))))


@commands.group("prm", epilog=examples("prm report --help"))
def prm_commands() -> None:
    """Process reward models: what their step scores are worth."""


@prm_commands.command(
    "report",
    epilog=examples(
        "prm report scores.jsonl",
        "prm report scores.npz --threshold 0.7 --plot least.png",
        "prm report logits.jsonl --class-weights 0,0.5,1 --json",
    )
    + "\n\n"
    + verbatim(FORMAT),
)
@click.argument("file", type=FILE)
@click.option("--plot", type=FILE, metavar="PATH", help="Draw where the least score falls (needs matplotlib).")
@click.option("--threshold", default=0.5, show_default=True, metavar="P", help="A step below it is wrong.")
@click.option("--strict", is_flag=True, help="A step at the threshold is wrong too.")
@click.option("--positive", default=1, show_default=True, metavar="CLASS", help="The class of logits that means right.")
@click.option("--class-weights", callback=weights, metavar="W,W,...", help="Score = weighted class probabilities.")
@as_json
def prm_report_command(file: Path, plot: Path | None, as_json: bool, **options: Any) -> None:
    """Say what the step scores in FILE are worth, under every strategy.

    Where the least score of a response falls; Best-of-N by minimum, product, last step and the others, and by majority;
    ProcessBench's F1 of each subset, and at the best threshold. What the file has no fields for is left out.
    """
    from .prm_report import report
    from .prm_tables import to_text

    result = report(file, plot, **options)
    if as_json:
        print_json(result)
    else:
        click.echo(to_text(result))


@commands.command(
    "predict",
    short_help="Predict how much faster a ladder would decode.",
    epilog=examples(
        "predict",
        "predict --model 8b --tp 4 --link pcie --worth 1.2",
        "predict --model ./my-model --all-reduce 12 40",
        "predict --device 8 1200 --json",
    ),
)
@click.option(
    "--model", default="llama-3-70b", show_default=True, metavar="NAME",
    help=f"{', '.join(MODELS)}, or a folder with a config.json.",
)  # fmt: skip
@click.option("--tp", default=8, show_default=True, metavar="N", help="Ranks that share each layer.")
@click.option("--batch", default=1, show_default=True, metavar="N", help="Sequences.")
@click.option("--prompt", default=1024, show_default=True, metavar="N", help="Tokens of each prompt.")
@click.option("--new-tokens", default=512, show_default=True, metavar="N", help="Of each sequence.")
@click.option("--link", type=click.Choice(tuple(LINKS)), help="Between the ranks.  [default: nvlink]")
@click.option(
    "--all-reduce", type=float, nargs=2, metavar="US GB", callback=made(given_link),
    help="Instead of --link: an all-reduce of S bytes takes US microseconds + S / (GB gigabytes a second).",
)  # fmt: skip
@click.option(
    "--device", type=float, nargs=2, metavar="TB TFLOP", callback=made(given_device),
    help="Instead of the H100's fitted numbers: terabytes and teraFLOP a second that your device reaches.",
)  # fmt: skip
@click.option("--ladder-layers", type=int, metavar="N", help="Ladder layers of the hybrid, the last N.  [default: half]")
@click.option("--worth", default=WORTH, show_default=True, metavar="X", help="The speed-up worth retraining for.")
@click.option(
    "--plot", type=FILE, metavar="PATH",
    help="Where to draw speed-up against link speed (needs matplotlib).  [default: predict.png; with --json: nowhere]",
)  # fmt: skip
@click.option("--no-plot", is_flag=True, help="Draw nothing.")
@as_json
def predict_command(
    link: str | None,
    all_reduce: Any,
    device: Any,
    worth: float,
    plot: Path | None,
    no_plot: bool,
    as_json: bool,
    **setting: Any,
) -> None:
    """Predict how much faster a ladder would decode on your model and link.

    A ladder hides all-reduces behind compute, at the price of training the model as one. The table sets it beside a hybrid, a
    parallel block and no communication at all; the last line says whether it pays.
    """
    from .predict import draw, predicted, to_json, to_text

    if link and all_reduce:
        raise click.UsageError("--link and --all-reduce must not both be given")
    prediction = predicted(link=link or all_reduce, device=device or "h100", **setting)
    if plot is None and not as_json:
        plot = Path("predict.png")
    plot = None if no_plot or plot is None else draw(prediction, worth, plot)
    if as_json:
        print_json(to_json(prediction, worth))
    else:
        click.echo(to_text(prediction, worth) + (f"\n\nWritten: {plot}" if plot else ""))
