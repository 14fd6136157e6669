"""The ladder part of ``python -m ladderkern demo``: what wiring a language model as a ladder does to its held-out loss."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from ..runtime.backend import explain
from . import demo_training
from .demo_report import COLOURS, conditions, describe_training, guide, progress_bar, text_table, write_rows
from .demo_spam import BEST_LR
from .demo_training import Plan, Run, Setting, build_model, one_thread, train

FULL = demo_training.FULL
QUICK = dataclasses.replace(demo_training.QUICK, steps=36, lr_warmup=6, held_out_share=0.02)
EVALUATIONS = 6  # of the held-out loss in a run, at equal distances


@one_thread()
def run(arguments: argparse.Namespace) -> None:
    """Train with every wiring, print the table, write ``ladder.csv`` and ``ladder.png``."""
    start = time.perf_counter()
    plan = Plan.draw(dataclasses.replace(QUICK if arguments.quick else FULL, seed=arguments.seed))
    print(introduction(plan, arguments.output), flush=True)
    runs = train_all(plan)
    arguments.output.mkdir(parents=True, exist_ok=True)
    csv, png = arguments.output / "ladder.csv", arguments.output / "ladder.png"
    write_csv(runs, plan, csv)
    write_plot(runs, plan, png)
    print(f"\n{table(runs)}\n\n{reading_guide(plan, quick=arguments.quick)}")
    print(f"\nWritten: {csv}, {png}  ({time.perf_counter() - start:.0f} s in all)")


def wirings(setting: Setting) -> dict[str, int]:
    """What is compared: the name of each wiring, and how many of the last layers are ladder layers in it."""
    return {"standard": 0, "hybrid": setting.layers // 2, "ladder": setting.layers}


def rewired(plan: Plan, wiring: str) -> Plan:
    """The same data for another wiring."""
    return dataclasses.replace(plan, setting=dataclasses.replace(plan.setting, ladder_layers=wirings(plan.setting)[wiring]))


def train_all(plan: Plan) -> list[Run]:
    """One run a wiring."""
    steps = plan.setting.steps
    after = [steps * i // EVALUATIONS for i in range(1, EVALUATIONS + 1)]
    runs = []
    for wiring in wirings(plan.setting):
        own = rewired(plan, wiring)
        bar = progress_bar(wiring)
        result = train("AdamW", BEST_LR["AdamW"], own, spikes=False, evaluate_after=after, progress=bar)
        result.name = wiring
        runs.append(result)
    return runs


def introduction(plan: Plan, output: Path) -> str:
    """What is being done and what to look at, before it starts."""
    setting = plan.setting
    count = sum(p.numel() for p in build_model(setting).parameters())
    return "\n".join(
        (
            f"Training one {count / 1e6:.1f} M-parameter byte-level Llama with each of {len(wirings(setting))} wirings.",
            f"No spikes. At the end look at the table and at {output / 'ladder.png'}.",
            "",
            "  standard  attention and MLP of a layer read the whole residual stream",
            "  ladder    they read it without the output of the module directly before, whose all-reduce in tensor",
            "            parallelism then has time until they are done",
            f"  hybrid    the last {wirings(setting)['hybrid']} of the {setting.layers} layers are ladder layers",
            describe_training(plan, "first weights and data"),
            f"  lr        {BEST_LR['AdamW']:g}, AdamW's best on the ladder model with spikes (bench/results/demo_sweep.csv)",
            "",
        )
    )


def table(runs: list[Run]) -> str:
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
    return text_table(("wiring", f"step {first}", *map(str, others), "above standard"), rows)


def reading_guide(plan: Plan, *, quick: bool) -> str:
    """What the columns mean and what the numbers are good for."""
    setting = plan.setting
    lines = [
        "Held-out loss in nats a byte after so many steps: less is better. The last column: at the end.",
        f"No way through a ladder passes two modules in a row: at most {setting.layers} of the {2 * setting.layers} here.",
        f"This is one seed ({setting.seed}), a short run: try --seed N to see how much is chance.",
        "Published, 100 billion tokens: perplexity 18.42 against the standard 18.54 with 1 billion parameters, 14.90 against",
        "14.48 with 3 billion (arXiv 2501.06589).",
        "One process gains no time from a ladder. Its gain, communication hidden behind compute, is what",
        "torchrun --nproc-per-node 2 examples/ladder_llama.py shows.",
        f"Ladder: {explain('add_rms_norm', torch.empty(1))}.",
    ]
    return guide(lines, quick, f"after {setting.steps} steps: do not compare wirings by it.")


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


def write_plot(runs: list[Run], plan: Plan, path: Path) -> None:
    """Held-out losses over the steps, and below them how far each lies above the standard wiring's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    standard = runs[0].held_out_after
    for run, colour in zip(runs, COLOURS[: len(runs)], strict=True):
        curve = run.held_out_after
        style = {"color": colour, "linewidth": 1.6, "marker": "o", "markersize": 4}
        top.plot(list(curve), list(curve.values()), label=f"{run.name} ({run.held_out:.3f} at the end)", **style)
        bottom.plot(list(curve), [loss - standard[step] for step, loss in curve.items()], **style)
    for axes in (top, bottom):
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_axisbelow(True)
    top.set_ylabel("held-out loss, nats a byte")
    top.set_title(f"Standard against ladder wiring, {plan.setting.layers} layers, seed {plan.setting.seed}")
    top.legend(loc="upper right", fontsize=9, framealpha=0.95)
    bottom.set_ylabel("loss above\nstandard")
    bottom.set_xlabel("step")
    figure.savefig(path)
