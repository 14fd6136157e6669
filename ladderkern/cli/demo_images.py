"""The images part of ``python -m ladderkern demo``: MVoT's joint loss against cross-entropy alone, on image tokens."""

from __future__ import annotations

import dataclasses

from . import demo_images_report as report
from .demo_frozen_lake import FULL, QUICK, Plan
from .demo_images_training import LOSSES, build_model, train
from .demo_report import Options, Picture, Section, progress_bar
from .demo_training import one_thread
from .demo_workers import Job, Workers

TITLE = "Token discrepancy: image tokens that err nearby"
QUESTION = (
    "Cross-entropy punishes every wrong image token alike. Does a loss that also counts how far the wrong token's picture is "
    "from the right one draw better FrozenLake boards after a move?"
)


@one_thread()
def run(options: Options, workers: Workers) -> Section:
    """Train with both losses and write ``images.csv``."""
    setting = dataclasses.replace(QUICK if options.quick else FULL, seed=options.seed)
    plan = Plan.draw(setting, progress_bar("rendering boards", unit="picture"))
    runs = workers.run(f"{len(LOSSES)} losses", [Job(train, (name, plan), {}) for name in LOSSES], setting.steps)
    path = options.output / "images.csv"
    report.write_csv(runs, plan, path)
    wrong = [float((run.predicted != plan.held_out.after).float().sum(1).mean()) for run in runs]
    return Section(
        part="images",
        title=TITLE,
        question=QUESTION,
        paper="2501.07542",
        findings=report.findings(runs, plan),
        table=report.table(runs),
        picture=Picture(
            draw=lambda narrow: report.draw(runs, plan, narrow),
            alt="A grid of decoded FrozenLake boards, a column a move: the board before it, the true one after it, and the one "
            "that each of two models generated, wrong tokens framed. On average over all judged pictures "
            + ", ".join(f"{run.name} has {count:.1f} wrong tokens" for run, count in zip(runs, wrong, strict=True))
            + ".",
            caption="Boards never trained on, all decoded from tokens, each token 16 × 16 pixels. Wrong tokens are framed.",
        ),
        setup=report.setup(plan, sum(p.numel() for p in build_model(setting, len(plan.codebook.codes)).parameters())),
        caveats=report.caveats(plan, quick=options.quick),
        csv=path,
    )
