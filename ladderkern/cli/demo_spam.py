"""The optimizer part of ``python -m ladderkern demo``: what gradient spikes do to AdamW, and what SPAM does about them."""

from __future__ import annotations

import dataclasses

from . import demo_spam_report as report
from . import demo_training
from .demo_report import Options, Picture, Section, training_setup
from .demo_training import Plan, Run, build_model, one_thread, train
from .demo_workers import Job, Workers

TITLE = "SPAM: training through gradient spikes"
QUESTION = (
    "Now and then a gradient is a thousand times too large. What does that cost AdamW, and what do SPAM's clipping, its resets "
    "and its sparse moments save?"
)
# The best learning rate of each optimizer: the least held-out loss in bench/results/demo_sweep.csv, which
# bench/sweep_demo.py wrote (one grid for all, another seed than the demo's).
BEST_LR = {
    "AdamW": 2e-3,
    "AdamW, clip norm 1": 2e-3,
    "SPAM": 2e-3,
    "SPAM, 1/4 by element": 8e-3,
    "SPAM, 1/4 by row": 4e-3,
}
YARDSTICK = "AdamW, no spikes"


@one_thread()
def run(options: Options, workers: Workers) -> Section:
    """Train with every optimizer and write ``spam.csv``."""
    setting = dataclasses.replace(demo_training.QUICK if options.quick else demo_training.FULL, seed=options.seed)
    plan = Plan.draw(setting)
    runs = train_all(plan, workers)
    path = options.output / "spam.csv"
    report.write_csv(runs, plan, path)
    count = sum(p.numel() for p in build_model(setting).parameters())
    model = f"a byte-level ladder Llama of {count / 1e6:.2f} M parameters, one run for each of {len(BEST_LR)} optimizers"
    return Section(
        part="spam",
        title=TITLE,
        question=QUESTION,
        paper="2501.06842",
        findings=report.findings(runs),
        table=report.table(runs),
        picture=Picture(
            draw=lambda narrow: report.draw(runs, plan, narrow),
            alt=f"Line charts over {setting.steps} steps of the smoothed training loss of {len(runs)} runs, and of its "
            f"difference to AdamW without spikes; beside them the held-out losses at the end: "
            + ", ".join(f"{run.name} {run.held_out:.3f}" for run in runs)
            + ".",
            caption=f"{len(plan.spiking)} spikes and {len(setting.resets())} resets of SPAM are marked.",
        ),
        setup=[("model", model), *training_setup(plan, "first weights, data and spikes"), *report.setup(plan)],
        caveats=report.caveats(plan, quick=options.quick),
        csv=path,
    )


def train_all(plan: Plan, workers: Workers) -> list[Run]:
    """One run an optimizer, after one of AdamW without spikes as a yardstick."""
    spiked = [Job(train, (name, lr, plan), {}) for name, lr in BEST_LR.items()]
    yardstick = Job(train, ("AdamW", BEST_LR["AdamW"], plan), {"spikes": False})
    runs = workers.run(f"{1 + len(spiked)} optimizers", [yardstick, *spiked], plan.setting.steps)
    runs[0].name = YARDSTICK
    return runs
