"""The demo's ladder part: end to end in a tiny setting, its fairness, and that the demo's models are wired as it says."""

import dataclasses
import math

import pytest
import torch

from ladderkern.cli import demo_ladder, demo_training

TINY = demo_training.Setting(steps=6, batch=2, length=16, hidden=32, layers=2, lr_warmup=2, held_out_share=0.001)
needs_extras = pytest.mark.needs("transformers", "matplotlib", "jinja2", "tqdm")


@pytest.fixture(scope="module")
def written(run_demo):
    """The folder that the ladder part wrote in the tiny setting."""
    return run_demo("ladder", demo_ladder, TINY)


@pytest.fixture(scope="module")
def plan():
    return demo_training.Plan.draw(TINY)


@needs_extras
def test_each_wiring_has_finite_held_out_losses_at_the_same_steps(rows):
    assert [(row["wiring"], int(row["step"])) for row in rows] == [
        (wiring, step) for wiring in ("standard", "hybrid", "ladder") for step in range(1, TINY.steps + 1)
    ]
    assert all(0 < float(row["held_out_loss"]) < 10 for row in rows)


@needs_extras
def test_wirings_differ_in_nothing_but_the_wiring(rows):
    assert len({row["data_sha256"] for row in rows}) == 1
    assert {(row["seed"], row["lr"]) for row in rows} == {("3", "0.002")}
    settings = {row["setting"] for row in rows}
    assert settings == {dataclasses.replace(TINY, ladder_layers=n).describe() for n in (0, 1, 2)}
    assert len({row["held_out_loss"] for row in rows if row["step"] == "6"}) == 3


@needs_extras
def test_the_table_and_the_report_are_written_and_no_other_part_ran(written):
    assert sorted(path.name for path in written.iterdir()) == ["ladder.csv", "report.html"]


def _runs(*losses):
    return [
        demo_training.Run(name, 1e-3, held_out_after=dict(zip((10, 20, 30), of_run, strict=True)))
        for name, of_run in zip(("standard", "hybrid", "ladder"), losses, strict=True)
    ]


def test_the_table_shows_losses_at_equal_steps_and_what_lies_above_standard():
    table = demo_ladder.table(_runs((3.0, 2.75, 2.5), (3.0, 2.5, 2.25), (3.0, 2.875, 2.625)))
    assert table.header == ("wiring", "step 10", "20", "30", "above standard")
    assert table.rows == [
        ("standard", "3.0000", "2.7500", "2.5000", "-"),
        ("hybrid", "3.0000", "2.5000", "2.2500", "-0.2500"),
        ("ladder", "3.0000", "2.8750", "2.6250", "+0.1250"),
    ]
    assert {(row, column) for row, column in table.best if column > 1} == {(1, 2), (1, 3)}


def test_the_findings_follow_the_numbers():
    lines = demo_ladder.findings(_runs((3.0, 2.75, 2.5), (3.25, 3.0, 2.75), (2.5, 2.5, 2.625)))
    assert lines == [
        "After 30 steps: hybrid 0.250 above standard, ladder 0.125 above standard, which ends at 2.500 nats a byte.",
        "After 10 steps the hybrid was 0.250 above standard and was never below.",
        "After 10 steps the ladder was 0.500 below standard; it was below at 2 of 3 evaluations, last after 20.",
    ]
    lines = demo_ladder.findings(_runs((3.0, 2.75, 2.5), (2.0, 2.0, 2.0), (3.0, 2.75, 2.5)))
    assert lines[0].startswith("After 30 steps: hybrid 0.500 below standard, ladder equal to standard,")
    assert lines[1:] == [
        "After 10 steps the hybrid was 1.000 below standard and stayed below.",
        "After 10 steps the ladder was equal to standard and was never below.",
    ]


@needs_extras
def test_all_wirings_start_from_the_same_weights(plan):
    models = {
        name: demo_training.build_wired(demo_ladder.rewired(plan, name).setting) for name in ("standard", "hybrid", "ladder")
    }
    states = [model.state_dict() for model in models.values()]
    assert all(torch.equal(state[name], weight) for state in states for name, weight in states[0].items())
    wired = {name: getattr(model.config, "ladder_layers", None) for name, model in models.items()}
    assert wired == {"standard": None, "hybrid": [1], "ladder": [0, 1]}


@needs_extras
def test_the_optimizers_train_a_ladder(plan):
    default, standard, ladder = (
        demo_training.train("SPAM", 1e-3, part).losses
        for part in (plan, demo_ladder.rewired(plan, "standard"), demo_ladder.rewired(plan, "ladder"))
    )
    assert default == ladder
    assert default[0] != standard[0]  # same weights, same data


@needs_extras
def test_looking_at_the_held_out_loss_does_not_change_the_training(plan):
    blind, watched = (demo_training.train("AdamW", 1e-3, plan, evaluate_after=steps) for steps in ((), (1, 4)))
    assert blind.losses == watched.losses
    assert list(blind.held_out_after) == [6]
    assert list(watched.held_out_after) == [1, 4, 6]
    assert math.isclose(blind.held_out, watched.held_out)
    assert watched.held_out_after[1] > watched.held_out


def test_one_thread_gives_the_threads_back_whatever_happens(thread_count):
    @demo_training.one_thread()
    def fail():
        raise RuntimeError(f"on {torch.get_num_threads()}")

    thread_count(2)
    with pytest.raises(RuntimeError, match="on 1"):
        fail()
    assert torch.get_num_threads() == 2
