"""The demo: end to end in a tiny setting, its fairness, and where its learning rates come from."""

import argparse
import csv
import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from ladderkern.cli import demo, demo_spam, demo_training

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
needs_extras = pytest.mark.needs("transformers", "matplotlib", "tqdm")


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
def test_the_plot_is_a_png(written):
    assert (written / "spam.png").read_bytes().startswith(b"\x89PNG")


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


def test_a_missing_package_is_one_line_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tqdm" else "found")
    arguments = argparse.Namespace(quick=True, only=None, seed=0, output=Path("unused"))
    assert demo.run(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "The demo needs tqdm: pip install tqdm\n"
