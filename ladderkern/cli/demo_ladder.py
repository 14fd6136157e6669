"""The ladder part of ``python -m ladderkern demo``: what wiring a language model as a ladder does to its held-out loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..runtime.backend import explain
from . import demo_training
from .demo_curves import Curve, draw_curves
from .demo_report import Options, Picture, Section, Table, compared, conditions, training_setup, write_rows
from .demo_spam import BEST_LR
from .demo_training import Plan, Run, Setting, build_model, one_thread, train
from .demo_workers import Job, Workers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Ladder residual: what the wiring costs"
QUESTION = (
    "In a ladder no module waits for the output of the one directly before it, so that tensor parallelism can hide its "
    "all-reduces behind compute. What does that wiring do to the loss of a model trained with it?"
)
FULL = demo_training.FULL
QUICK = dataclasses.replace(demo_training.QUICK, steps=36, lr_warmup=6, held_out_share=0.02)
EVALUATIONS = 6  # of the held-out loss in a run, at equal distances


@one_thread()
def run(options: Options, workers: Workers) -> Section:
    """Train with every wiring and write ``ladder.csv``."""
    plan = Plan.draw(dataclasses.replace(QUICK if options.quick else FULL, seed=options.seed))
    runs = train_all(plan, workers)
    path = options.output / "ladder.csv"
    write_csv(runs, plan, path)
    return Section(
        part="ladder",
        title=TITLE,
        question=QUESTION,
        paper="2501.06589",
        findings=findings(runs),
        table=table(runs),
        picture=Picture(
            draw=lambda narrow: draw(runs, narrow),
            alt=f"Line charts of the held-out loss of {len(runs)} wirings after each of {len(runs[0].held_out_after)} equal "
            "stretches of training, and of the difference to the standard wiring; beside them the losses at the end: "
            + ", ".join(f"{run.name} {run.held_out:.3f}" for run in runs)
            + ".",
            caption="Points are measured, lines only lead the eye.",
        ),
        setup=setup(plan),
        caveats=caveats(plan, quick=options.quick),
        csv=path,
    )


def wirings(setting: Setting) -> dict[str, int]:
    """What is compared: the name of each wiring, and how many of the last layers are ladder layers in it."""
    return {"standard": 0, "hybrid": setting.layers // 2, "ladder": setting.layers}


def rewired(plan: Plan, wiring: str) -> Plan:
    """The same data for another wiring."""
    return dataclasses.replace(plan, setting=dataclasses.replace(plan.setting, ladder_layers=wirings(plan.setting)[wiring]))


def train_all(plan: Plan, workers: Workers) -> list[Run]:
    """One run a wiring."""
    steps = plan.setting.steps
    after = [steps * i // EVALUATIONS for i in range(1, EVALUATIONS + 1)]
    names = list(wirings(plan.setting))
    options = {"spikes": False, "evaluate_after": after}
    jobs = [Job(train, ("AdamW", BEST_LR["AdamW"], rewired(plan, name)), options) for name in names]
    runs = workers.run(f"{len(names)} wirings", jobs, steps)
    for name, result in zip(names, runs, strict=True):
        result.name = name
    return runs


def table(runs: list[Run]) -> Table:
    """Held-out losses at equal steps, one run a line."""
    first, *others = runs[0].held_out_after
    rows = [
        (
            run.name,
            *(f"{loss:.4f}" for loss in run.held_out_after.values()),
            "-" if run is runs[0] else f"{run.held_out - runs[0].held_out:+.4f}",
        )
        for run in runs
    ]
    columns = enumerate(zip(*(run.held_out_after.values() for run in runs), strict=True), start=1)
    best = frozenset((losses.index(min(losses)), column) for column, losses in columns)
    caption = "Held-out loss in nats a byte after so many steps; last, how far the end lies above standard's. Bold: the lowest."
    return Table(caption, ("wiring", f"step {first}", *map(str, others), "above standard"), rows, best)


def findings(runs: list[Run]) -> list[str]:
    """What the numbers say."""
    standard, *others = runs
    first, *_, last = standard.held_out_after
    ends = [f"{run.name} {compared(run.held_out, standard.held_out)} standard" for run in others]
    lines = [f"After {last} steps: {', '.join(ends)}, which ends at {standard.held_out:.3f} nats a byte."]
    for run in others:
        below = [step for step, loss in run.held_out_after.items() if loss < standard.held_out_after[step]]
        early = compared(run.held_out_after[first], standard.held_out_after[first])
        start = f"After {first} steps the {run.name} was {early} standard"
        if not below:
            lines.append(f"{start} and was never below.")
        elif below == list(standard.held_out_after):
            lines.append(f"{start} and stayed below.")
        else:
            lines.append(
                f"{start}; it was below at {len(below)} of {len(run.held_out_after)} evaluations, last after {below[-1]}."
            )
    return lines


def setup(plan: Plan) -> list[tuple[str, str]]:
    """What was trained on what."""
    setting = plan.setting
    count = sum(p.numel() for p in build_model(setting).parameters())
    return [
        ("model", f"a byte-level Llama of {count / 1e6:.2f} M parameters, a run for each of {len(wirings(setting))} wirings"),
        ("standard", "attention and MLP of a layer read the whole residual stream"),
        ("ladder", f"they read it without the output of the module directly before. {explain('add_rms_norm', torch.empty(1))}"),
        ("hybrid", f"the last {wirings(setting)['hybrid']} of the {setting.layers} layers are ladder layers"),
        *training_setup(plan, "first weights and data"),
        ("lr", f"{BEST_LR['AdamW']:g}, AdamW's best on the ladder model with spikes (`bench/results/demo_sweep.csv`)"),
    ]


def caveats(plan: Plan, *, quick: bool) -> list[str]:
    """What the numbers are not good for."""
    setting = plan.setting
    example = "torchrun --nproc-per-node 2 examples/ladder_llama.py"
    lines = [
        f"This shows the cost alone. One process gains no time from a ladder: `{example}` shows the gain, `python -m "
        "ladderkern predict` what it would be on your model and link.",
        f"No way through a ladder passes two modules in a row: at most {setting.layers} of the {2 * setting.layers} here. "
        "Published, 100 billion tokens: perplexity 18.42 against the standard 18.54 with 1 billion "
        "parameters, 14.90 against 14.48 with 3 billion (arXiv 2501.06589).",
        f"One seed ({setting.seed}), a short run: repeat it with another `--seed` to see how much is chance.",
    ]
    early = f"`--quick` stops after {setting.steps} steps: do not compare wirings by it."
    return [early, *lines] if quick else lines


def write_csv(runs: list[Run], plan: Plan, path: Path) -> None:
    """One line a wiring and evaluation, with what is needed to repeat it."""
    rows = [
        {
            "wiring": run.name,
            "step": step,
            "held_out_loss": f"{loss:.4f}",
            "lr": run.lr,
            "data_sha256": run.data_hash,
            **conditions(rewired(plan, run.name)),
        }
        for run in runs
        for step, loss in run.held_out_after.items()
    ]
    write_rows(rows, path)


def draw(runs: list[Run], narrow: bool) -> Figure:
    """Held-out losses over the steps, how far each lies above the standard wiring's, and the ends."""
    curves = [Curve(run.name, list(run.held_out_after), list(run.held_out_after.values()), run.held_out) for run in runs]
    return draw_curves(curves, "Held-out loss", narrow=narrow)
