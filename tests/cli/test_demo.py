"""The demo: end to end in a tiny setting, its fairness, and where its learning rates come from."""

import csv
import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from ladderkern.cli import demo_parts, demo_spam, demo_spam_report, demo_training, main

SWEEP = Path(__file__).parents[2] / "bench" / "results" / "demo_sweep.csv"
TINY = demo_training.Setting(
    steps=12,
    batch=2,
    length=16,
    hidden=48,
    layers=1,
    lr_warmup=2,
    held_out_share=0.001,
    spike_probability=0.4,
    spike_start=2,
    reset_interval=4,
    warmup_steps=2,
    unclipped_steps=1,
)
needs_extras = pytest.mark.needs("transformers", "matplotlib", "jinja2", "tqdm")


@pytest.fixture(scope="module")
def written(run_demo):
    """The folder that the quick demo wrote in the tiny setting."""
    return run_demo("spam", demo_training, TINY)


@needs_extras
def test_every_optimizer_has_a_row_of_finite_numbers(rows):
    assert [row["optimizer"] for row in rows] == [demo_spam.YARDSTICK, *demo_spam.BEST_LR]
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in ("held_out_loss", "lr", "optimizer_step_ms"))
        assert 0 < float(row["held_out_loss"]) < 10
        assert row["seed"] == "3"


@needs_extras
def test_sparse_moments_hold_fewer_bytes_than_dense_ones(rows):
    size = {row["optimizer"]: int(row["state_bytes"]) for row in rows}
    assert size["SPAM"] == size["AdamW"]
    assert 0 < size["SPAM, 1/4 by element"] < 0.3 * size["SPAM"]
    assert 0 < size["SPAM, 1/4 by row"] < 0.3 * size["SPAM"]


@needs_extras
def test_all_optimizers_saw_the_same_data_and_the_same_spikes(rows):
    assert len({row["data_sha256"] for row in rows}) == 1
    (without, *spiked) = [row["spikes_sha256"] for row in rows]
    assert len(set(spiked)) == 1
    assert without != spiked[0]


@needs_extras
def test_the_table_and_the_report_are_written_and_no_other_part_ran(written):
    assert sorted(path.name for path in written.iterdir()) == ["report.html", "spam.csv"]


def _runs(**held_out):
    names = {
        "without": demo_spam.YARDSTICK,
        **dict(zip(("adamw", "clipped", "dense", "element", "row"), demo_spam.BEST_LR, strict=True)),
    }
    sizes = {"element": 100, "row": 100}
    return [
        demo_training.Run(name, 1e-3, held_out_after={9: held_out[key]}, optimizer_ms=1.5, state_bytes=sizes.get(key, 400))
        for key, name in names.items()
    ]


def test_the_findings_follow_the_numbers():
    lines = demo_spam_report.findings(_runs(without=2.0, adamw=2.25, clipped=1.5, dense=1.75, element=1.25, row=3.0))
    assert lines[0] == (
        "Lowest under spikes: SPAM, 1/4 by element, at 1.250 nats a byte, 1.000 below plain AdamW, with 25 % of AdamW's state."
    )
    assert lines[1].startswith("The spikes cost AdamW 0.250 ")
    assert "0.500 below plain AdamW, and 0.250 above the simplest remedy" in lines[2]
    lines = demo_spam_report.findings(_runs(without=2.0, adamw=1.0, clipped=1.75, dense=1.75, element=2.0, row=3.0))
    assert lines[0].startswith("Lowest under spikes: AdamW, at 1.000 nats a byte, with 100 %")
    assert lines[1].startswith("The spikes cost AdamW nothing ")
    assert "0.750 above plain AdamW, and equal to the simplest remedy" in lines[2]


def test_a_run_that_diverged_is_never_best_and_stops_no_picture():
    from ladderkern.cli import demo_curves, plot_style

    runs = _runs(without=2.0, adamw=math.nan, clipped=1.5, dense=1.75, element=math.nan, row=3.0)
    lines = demo_spam_report.findings(runs)
    assert lines[0].startswith("Lowest under spikes: AdamW, clip norm 1, at 1.500 nats a byte, incomparable to plain AdamW")
    assert (2, 1) in demo_spam_report.table(runs).best
    pytest.importorskip("matplotlib", reason="plots need it")
    curves = [demo_curves.Curve(run.name, [1, 2], [3.0, run.held_out], run.held_out) for run in runs]
    for narrow in (False, True):
        figure = plot_style.drawn(lambda shape: demo_curves.draw_curves(curves, "title", narrow=shape), narrow)
        assert plot_style.to_svg(figure, "a").count("diverged") == 2


def test_the_best_under_spikes_stand_out_in_the_table():
    table = demo_spam_report.table(_runs(without=1.0, adamw=2.25, clipped=1.5, dense=1.75, element=1.25, row=3.0))
    assert {(row, column) for row, column in table.best if column != 3} == {(4, 1), (4, 4), (5, 4)}
    assert [row[1] for row in table.rows] == ["1.0000", "2.2500", "1.5000", "1.7500", "1.2500", "3.0000"]


@needs_extras
def test_another_seed_means_other_data_and_other_spikes():
    hashes = set()
    for seed in (0, 1):
        plan = demo_training.Plan.draw(dataclasses.replace(TINY, seed=seed))
        run = demo_training.train("SPAM", 1e-3, plan)
        hashes |= {run.data_hash, run.spike_hash}
    assert len(hashes) == 4


@needs_extras
def test_the_same_seed_gives_the_same_losses():
    plan = demo_training.Plan.draw(TINY)
    runs = [demo_training.train("SPAM, 1/4 by row", 1e-3, plan) for _ in range(2)]
    assert runs[0].losses == runs[1].losses


def test_a_spike_multiplies_its_coordinates_and_no_others():
    p = torch.zeros(8, 25, requires_grad=True)
    p.grad = torch.ones(8, 25)
    setting = dataclasses.replace(TINY, spike_share=0.05)
    (chosen,) = demo_training.inject_spikes([p], setting, torch.Generator().manual_seed(0))
    assert len(chosen) == 10
    expected = torch.ones(200)
    expected[chosen] = 1000.0
    assert torch.equal(p.grad.view(-1), expected)


def test_no_paragraph_is_both_trained_on_and_held_out():
    text = demo_training.read_text(0.06)
    train, held_out = (bytes(part.tolist()).split(b"\n\n") for part in (text.train, text.held_out))
    assert len(text.train) + len(text.held_out) == text.num_bytes
    assert not set(train) & set(held_out)


def test_the_schedule_warms_up_and_ends_at_a_tenth():
    factors = [demo_training.lr_factor(step, demo_training.FULL) for step in range(1, demo_training.FULL.steps + 1)]
    assert max(factors) == factors[demo_training.FULL.lr_warmup - 1] == 1.0
    assert math.isclose(factors[-1], 0.1)


def test_learning_rates_are_the_best_of_the_kept_sweep():
    with SWEEP.open(newline="") as file:
        rows = list(csv.DictReader(file))
    grids = {name: {float(row["lr"]) for row in rows if row["optimizer"] == name} for name in demo_spam.BEST_LR}
    assert {row["optimizer"] for row in rows} == set(demo_spam.BEST_LR)
    assert len({frozenset(grid) for grid in grids.values()}) == 1
    for name, lr in demo_spam.BEST_LR.items():
        loss = {float(row["lr"]): float(row["held_out_loss"]) for row in rows if row["optimizer"] == name}
        assert min(loss) < lr < max(loss)  # a best at the end of the grid is not known to be one
        assert lr == min(loss, key=lambda rate: math.inf if math.isnan(loss[rate]) else loss[rate])


def test_the_kept_sweep_is_of_this_setting_and_of_another_seed():
    with SWEEP.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["setting"] for row in rows} == {demo_training.FULL.describe()}
    assert demo_training.FULL.seed not in {int(row["seed"]) for row in rows}


@pytest.mark.parametrize(
    ("parts", "absent", "named"),
    [
        (demo_parts.PARTS, {"tqdm"}, ["tqdm"]),
        (("images",), {"gymnasium"}, ["gymnasium[toy-text]"]),
        (("images",), {"pygame"}, ["gymnasium[toy-text]"]),
        (("spam",), {"pygame"}, []),
        (("prm",), {"transformers", "tqdm", "pygame"}, []),
        (("prm",), {"matplotlib", "jinja2"}, ["matplotlib", "jinja2"]),
    ],
)
def test_what_is_missing_is_named_as_pip_knows_it(monkeypatch, parts, absent, named):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else "found")
    assert demo_parts.missing(parts) == named


def test_a_missing_package_is_one_line_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"tqdm", "pygame"} else "found")
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "The demo needs tqdm and gymnasium[toy-text]: pip install tqdm 'gymnasium[toy-text]'\n"
