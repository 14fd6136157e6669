"""The demo's images part: end to end in a tiny setting, its fairness, and its tokenizer."""

import dataclasses
import math

import pytest
import torch

from ladderkern.cli import demo_frozen_lake as lake

needs_extras = pytest.mark.needs("transformers", "matplotlib", "jinja2", "tqdm", "gymnasium", "pygame")
TINY = lake.Setting(boards=3, held_out_boards=2, judged=6, codes=48, steps=4, batch=2, hidden=32, layers=1)


@pytest.fixture(scope="module")
def written(run_demo):
    """The folder that the images part wrote in the tiny setting."""
    from ladderkern.cli import demo_images

    return run_demo("images", demo_images, TINY)


@pytest.fixture(scope="module")
def plan():
    return lake.Plan.draw(TINY)


@needs_extras
def test_each_loss_has_a_row_of_numbers_in_their_range(rows):
    assert [row["loss"] for row in rows] == ["cross-entropy", "joint"]
    for row in rows:
        for name in ("token_accuracy", "changed_token_accuracy", "pictures_right"):
            assert 0 <= float(row[name]) <= 1
        assert 0 < float(row["token_distance"]) <= float(row["wrong_token_distance"]) < math.inf
        assert row["seed"] == "3"


@needs_extras
def test_both_losses_saw_the_same_data(rows):
    assert len({row["data_sha256"] for row in rows}) == 1


@needs_extras
def test_the_table_and_the_report_are_written_and_no_other_part_ran(written):
    assert sorted(path.name for path in written.iterdir()) == ["images.csv", "report.html"]


@needs_extras
def test_both_losses_start_from_the_same_weights_and_only_the_joint_one_adds_the_discrepancy(plan):
    from ladderkern import DistanceTable, token_discrepancy_loss
    from ladderkern.cli import demo_images_training as training

    first, second = (training.build_model(TINY, 48).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    table = DistanceTable(plan.codebook.embedding())
    logits = torch.randn(2, lake.TOKENS, lake.IMAGE_START + 48, generator=torch.Generator().manual_seed(0))
    labels = plan.train.after[:2]
    alone, joint = (training.loss_of(name, logits, labels, table, 0.5) for name in training.LOSSES)
    torch.testing.assert_close(joint, alone + 0.5 * token_discrepancy_loss(logits, labels, table), atol=1e-5, rtol=1e-5)


@needs_extras
def test_decoding_the_tokens_of_a_picture_gives_it_back_within_the_codebook_error(plan):
    boards = list(dict.fromkeys(plan.train.boards))
    pictures = lake.paint([(board, 0) for board in boards])
    error = (plan.codebook.decode(plan.codebook.encode(pictures)).float() - pictures.float()).square().mean().sqrt()
    assert error < 0.35 * plan.codebook.deviation  # 1 would be no picture at all
    assert 0 < plan.codebook_error < 0.5 * plan.codebook.deviation


@needs_extras
def test_a_codebook_with_a_code_for_every_patch_loses_nothing(plan):
    pictures = lake.paint([(plan.train.boards[0], 0)])
    codebook = lake.Codebook.fit(pictures, 64, torch.Generator())
    assert torch.equal(codebook.decode(codebook.encode(pictures)), pictures)


@needs_extras
def test_the_picture_after_a_move_differs_from_the_one_before(plan):
    for examples in (plan.train, plan.held_out):
        assert (examples.before != examples.after).any(dim=1).all()
    board = plan.train.boards[0]
    for tile, _, to in lake.moves_of(board):
        before, after = lake.paint([(board, tile), (board, to)])
        assert not torch.equal(before, after)


@needs_extras
def test_moves_lead_to_the_neighbouring_tile_and_end_at_holes_and_goal():
    board = ("SFFF", "FHFF", "FFFF", "FFFG")
    moves = lake.moves_of(board)
    step = {"left": -1, "down": 4, "right": 1, "up": -4}
    assert all(to - tile == step[lake.MOVES[move]] for tile, move, to in moves)
    assert {tile for tile, _, _ in moves} == set(range(15)) - {5}
    assert {5, 15} <= {to for _, _, to in moves}


@needs_extras
def test_no_board_is_both_trained_on_and_held_out(plan):
    assert not set(plan.train.boards) & set(plan.held_out.boards)
    assert len(plan.held_out.boards) == len(plan.held_out.move) == TINY.judged


@needs_extras
def test_another_seed_means_other_boards_and_the_same_seed_the_same_plan(plan):
    same, other = lake.Plan.draw(TINY), lake.Plan.draw(dataclasses.replace(TINY, seed=1))
    assert torch.equal(plan.train.after, same.train.after)
    assert torch.equal(plan.order, same.order)
    assert not set(plan.train.boards) & set(other.train.boards)


def test_joining_the_patches_of_a_picture_gives_it_back():
    side = lake.GRID * lake.PATCH
    pictures = torch.arange(2 * side * side * 3).view(2, side, side, 3)
    assert torch.equal(lake.join(lake.cut(pictures)), pictures)


def test_k_means_finds_well_separated_groups():
    points = torch.tensor([[0.0], [0.2], [10.0], [10.2], [20.0]])
    centres = lake.k_means(points, torch.ones(5), 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(centres.sort(dim=0).values, torch.tensor([[0.1], [10.1], [20.0]]))


def test_the_gain_on_changed_tokens_is_paired_picture_by_picture():
    from ladderkern.cli import demo_images_report, demo_images_training

    before, after = torch.zeros(3, lake.TOKENS, dtype=torch.int64), torch.zeros(3, lake.TOKENS, dtype=torch.int64)
    after[:, :4] = 1  # four tokens change in each picture
    held_out = lake.Examples(before, torch.zeros(3, 1, dtype=torch.int64), after, [()] * 3)
    plan = lake.Plan(TINY, lake.Codebook(torch.zeros(1), 1.0), held_out, held_out, torch.zeros(0), 0.0, 0)
    first, second = after.clone(), after.clone()
    first[0, :2] = 0  # two changed tokens wrong
    first[1, 40] = 5  # a copied one wrong, which does not count
    second[2, :1] = 0
    runs = [demo_images_training.Run(name, predicted=tokens) for name, tokens in (("a", first), ("b", second))]
    gain, error = demo_images_report.changed_gain(*runs, plan)
    assert gain == pytest.approx((2 + 0 - 1) / 12)
    assert error == pytest.approx(torch.tensor([2.0, 0.0, -1.0]).std().item() * 3**0.5 / 12)
    for run, accuracy in zip(runs, (0.5, 1.0), strict=True):
        run.accuracy = run.accuracy_changed = accuracy
        run.wrong_distance = 1.25
    lines = demo_images_report.findings(runs, plan)
    assert lines[0] == (
        "Joint loss: 100.0 % of the tokens right, 100.0 % of those that a move changes; cross-entropy alone: 50.0 % and 50.0 %."
    )
    assert "+8.3 points, is within two standard errors" in lines[1]
    assert "none wrong with the joint loss, 1.25 with cross-entropy alone" in lines[2]
