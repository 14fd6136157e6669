"""bench/plot.py: the picture says what the CSV files say."""

import csv
import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="plots need it")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@pytest.fixture(scope="module")
def plot():
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("plot")
    sys.path.remove(str(ROOT / "bench"))


@pytest.fixture
def results(tmp_path):
    for name in ("spam", "discrepancy", "prm", "ladder"):
        shutil.copy(RESULTS / f"{name}.csv", tmp_path)
    return tmp_path


def rewrite(path, change):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if change(row) is not False]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_changed_figure_changes_the_picture(plot, results):
    def change(row):
        if row["comparison"] == "fp32 dense" and row["quantity"] == "SPAM / AdamW fused":
            row.update(median="0.25", q1="0.2", q3="0.5")
        if row["comparison"] == "fp32 dense" and row["quantity"] == "eager SPAM, density 1 / SPAM":
            row.update(median="777", q1="700", q3="800")

    rewrite(results / "spam.csv", change)
    assert plot.main(["--results", str(results), "--images", str(results)]) == 0
    bars = {bar.label: bar for bar in plot.read(results).parts[0][1]}
    assert bars["AdamW, fused"] == ("AdamW, fused", 4.0, 2.0, 5.0)  # ours over theirs is turned over, its quartiles too
    assert {"4.0 ×", "777 ×"} <= set(texts((results / "speed.svg").read_text()))
    assert (results / "speed.png").stat().st_size > 20_000


def test_the_committed_picture_is_of_the_committed_results(plot, tmp_path):
    assert plot.main(["--images", str(tmp_path)]) == 0
    committed = (ROOT / "docs" / "images" / "speed.svg").read_text()
    assert texts(committed) == texts((tmp_path / "speed.svg").read_text())


def test_the_picture_names_the_machine_and_has_colours_for_dark_pages(plot, results):
    def change(row):
        row.update(cpu="Some CPU (family 9)")

    for path in results.glob("*.csv"):
        rewrite(path, change)
    assert plot.main(["--results", str(results), "--images", str(results)]) == 0
    svg = (results / "speed.svg").read_text()
    assert any("Some CPU (family 9)" in text for text in texts(svg))
    assert "prefers-color-scheme: dark" in svg
    assert set(re.findall(r"var\(--([a-z]+)\)", svg)) <= set(re.findall(r"--([a-z]+):", svg))


def test_results_of_different_machines_or_without_a_row_are_refused(plot, results, capsys):
    def lost(row):
        return row["quantity"] != "compiled / ours"

    rewrite(results / "ladder.csv", lost)
    assert plot.main(["--results", str(results), "--images", str(results)]) == 2
    assert "ladder.csv has no row 'add + norm fp32 [4096, 4096]', 'compiled / ours'" in capsys.readouterr().err

    def moved(row):
        row["cpu"] = "another"

    rewrite(results / "prm.csv", moved)
    assert plot.main(["--results", str(results), "--images", str(results)]) == 2
    assert "different machines" in capsys.readouterr().err
    assert not (results / "speed.svg").exists()
