"""``python -m ladderkern predict``: a table, a sentence, a picture, and plain errors."""

import importlib.util
import json

import pytest

from ladderkern import ladder
from ladderkern.cli import main
from ladderkern.ladder.advice import break_even

needs_matplotlib = pytest.mark.needs("matplotlib")


def out(capsys, *options):
    assert main(["predict", "--no-plot", *options]) == 0
    return capsys.readouterr().out


@needs_matplotlib
def test_it_prints_the_table_and_one_sentence_and_draws(tmp_path, capsys):
    path = tmp_path / "new" / "speed-up.png"
    options = ["--model", "llama-3-70b", "--tp", "8", "--batch", "1", "--link", "nvlink", "--plot", str(path)]
    assert main(["predict", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Prediction: llama-3-70b, TP 8, batch 1")
    assert any(line.startswith("ladder ") and "101.22" in line for line in lines)
    assert any("7.3 us one-shot or multimem all-reduce" in line for line in lines)
    assert lines[-1] == f"Written: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


@needs_matplotlib
def test_the_picture_has_every_curve_the_break_evens_and_the_links(tmp_path):
    from matplotlib.figure import Figure

    from ladderkern.cli.predict_plot import write_plot
    from ladderkern.ladder import predict

    path = tmp_path / "speed-up.svg"
    saved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path: saved.append(figure))
        write_plot(predict("70b", 8), 1.05, path)
    (axes,) = saved[0].axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels[:5] == ["no communication", "ladder, perfect overlap", "ladder", "hybrid", "parallel"]
    assert [label.split(":")[0] for label in labels[5:]] == [
        "break-even, ladder 1.05x",
        "break-even, ladder as fast as parallel",
    ]
    assert {text.get_text().strip() for text in axes.texts} == {"no-p2p", "fast", "pcie", "this link"}


def test_numbers_of_ones_own(capsys):
    text = out(capsys, "--all-reduce", "3", "100", "--device", "2", "300", "--ladder-layers", "10", "--worth", "1.2")
    assert "given: 2 TB/s, 300 TFLOP/s; given: 3 us + 100 GB/s; 3.2 us an all-reduce" in text
    assert "10 of 80 layers are ladder layers" in text
    assert "1.20x it would be from" in text
    assert " fit\n" not in text


def test_one_rank_is_predicted_and_not_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--tp", "1"]) == 0
    assert "On one rank there is no all-reduce to hide" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "gpt-17"), "model must be a config"),
        (("--tp", "7"), "tp must divide the 64 heads of llama-3-70b, got 7\n"),
    ],
)
def test_errors_are_one_line(options, message, capsys):
    assert main(["predict", "--no-plot", *options]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert (captured.err.count("\n"), captured.out) == (1, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--link", "pcie", "--all-reduce", "1", "1"), "--link and --all-reduce must not both be given\n"),
        (("--all-reduce", "1", "0"), "'--all-reduce': must be a time of at least 0 and a bandwidth above 0, got 1 and 0\n"),
        (("--device", "0", "1"), "'--device': must be two numbers above 0, got 0 and 1\n"),
    ],
)
def test_options_that_cannot_be_are_a_wrong_call(options, message, capsys):
    assert main(["predict", "--no-plot", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith(message)
    assert captured.out == ""


def test_json_has_the_numbers_of_the_function_and_draws_nothing_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--tp", "4", "--link", "pcie", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    prediction = ladder.predict(tp=4, link="pcie")
    assert result["architectures"] == [row._asdict() for row in prediction.rows]
    assert result["all_reduces_worth_it"] == break_even(prediction.run)._asdict()
    assert (result["model"], result["tp"], result["worth"]) == ("llama-3-70b", 4, 1.05)
    assert list(tmp_path.iterdir()) == []
    assert main(["predict", "--tp", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all_reduces_worth_it"] is None


@needs_matplotlib
def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert main(["predict", "--plot", str(tmp_path / "speed-up.nonsense")]) == 1
    assert "nonsense" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["predict"]) == 1
    assert capsys.readouterr().err == "The plot needs matplotlib: pip install matplotlib, or --no-plot\n"
    assert main(["predict", "--no-plot"]) == 0
