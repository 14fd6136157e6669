"""The demo's PRM part: the numbers that it shows are the published ones, and it needs little to run."""

import csv

import pytest
import torch

from ladderkern.cli import main, prm_plot
from ladderkern.prm import STRATEGIES
from ladderkern.prm.published import PUBLISHED_BEST_OF_10

needs_matplotlib = pytest.mark.needs("matplotlib", "jinja2")


@pytest.fixture
def written(tmp_path, capsys):
    """(what the part printed, the folder that it wrote)."""
    folder = tmp_path / "new" / "folder"
    assert main(["demo", "--part", "prm", "--output", str(folder)]) == 0
    return capsys.readouterr().out, folder


@needs_matplotlib
def test_the_published_percentages_stand_beside_ours(written):
    rows = {line.split("  ")[0]: line.split() for line in written[0].splitlines()}
    assert rows["product"][1:] == ["17.18", "%", "17.18", "%", "18.22", "%", "18.22", "%"]
    assert rows["geometric mean"][2:] == ["15.73", "%", "15.74", "%", "20.29", "%", "20.29", "%"]
    assert rows["min"][1:] == ["15.32", "%", "-", "19.46", "%", "-"]
    assert set(rows) >= {name.replace("_", " ") for name in STRATEGIES}
    assert "68.4 % (Math-Shepherd) and 31.5 % (ReasonEval-7B)" in written[0]
    assert "All aggregates of all 59,644 step scores take" in written[0]


@needs_matplotlib
def test_it_writes_a_table_and_the_report_and_no_other_part_ran(written):
    assert sorted(path.name for path in written[1].iterdir()) == ["prm.csv", "report.html"]
    with (written[1] / "prm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["prm"], row["strategy"]) for row in rows] == [
        (prm, name) for prm in PUBLISHED_BEST_OF_10 for name in STRATEGIES
    ]
    for row in rows:
        published = PUBLISHED_BEST_OF_10[row["prm"]].get(row["strategy"])
        if published is not None:
            assert 100 * int(row["strictly_first"]) / int(row["groups"]) == pytest.approx(published, abs=0.0051)


def test_places_of_the_least_score():
    # Of 2 steps the last, of 3 the middle, of 8 the first, second and seventh; a lone step and an empty response count nowhere.
    argmin, count = torch.tensor([1, 1, 0, 1, 6, 0, -1]), torch.tensor([2, 3, 8, 8, 8, 1, 0])
    observed, even = prm_plot.shares_of_places(argmin, count)
    assert dict(zip(prm_plot.PLACES, observed.tolist(), strict=True)) == {
        "first step": 0.2, "early": 0.2, "middle": 0.2, "late": 0.2, "last step": 0.2,
    }  # fmt: skip
    ends = (1 / 2 + 1 / 3 + 3 / 8) / 5
    torch.testing.assert_close(even, torch.tensor([ends, 6 / 40, (1 / 3 + 6 / 8) / 5, 6 / 40, ends], dtype=torch.float64))


@pytest.mark.parametrize("steps", range(2, 40))
def test_places_are_symmetric(steps):
    _, even = prm_plot.shares_of_places(torch.tensor([0]), torch.tensor([steps]))
    torch.testing.assert_close(even, even.flip(0))
    assert even.sum().item() == pytest.approx(1.0)


def test_a_file_of_the_plot_has_a_panel_and_its_title(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need it")
    path = tmp_path / "plot.svg"
    prm_plot.write_plot([("one model", torch.tensor([1, 0]), torch.tensor([2, 3]))], path)
    assert "Where a response" in path.read_text()
    with pytest.raises(ValueError, match="nonsense"):
        prm_plot.write_plot([("one model", torch.tensor([1, 0]), torch.tensor([2, 3]))], tmp_path / "plot.nonsense")
