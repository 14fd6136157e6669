"""``python -m ladderkern prm report``: what it prints of real and made files, and what it says of malformed ones."""

import importlib.util
import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import torch

from ladderkern import prm
from ladderkern.cli import main
from ladderkern.prm import published

DATA = resources.files("ladderkern.prm") / "data"
needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the demo extra is not installed")

COUNTS = {  # of 483 groups: above all wrong ones, ties counted
    "math_shepherd": {"product": (83, 83), "geometric mean": (76, 76), "min": (74, 74), "mean": (73, 73), "last": (88, 88),
                      "mean margin": (71, 71), "max": (19, 32)},
    "reasoneval_7b": {"product": (88, 88), "geometric mean": (98, 98), "min": (94, 96), "mean": (97, 97), "last": (72, 72),
                      "mean margin": (101, 101), "max": (58, 87)},
}  # fmt: skip
LAST = {"math_shepherd": "68.45 % (3,306 of 4,830 responses)", "reasoneval_7b": "31.49 % (1,521 of 4,830 responses)"}
RIGHT = {"math_shepherd": "(1,332 of 4,830)", "reasoneval_7b": "(744 of 4,830)"}


@pytest.fixture
def report(capsys):
    """Runs the command; (exit code, what it printed, what it complained about)."""

    def run(*arguments):
        code = main(["prm", "report", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def written(tmp_path, *lines):
    path = tmp_path / "scores.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def cells(text, name):
    """The cells of the table row that begins with ``name``."""
    (row,) = [line for line in text.splitlines() if line.startswith(name + "  ")]
    return [cell.strip() for cell in row.removeprefix(name).split("  ") if cell.strip()]


@needs_matplotlib
@pytest.mark.parametrize("model", published.REWARDMATH)
def test_both_data_files_print_the_published_table_and_a_plot(report, tmp_path, model):
    plot = tmp_path / "new" / "places.png"
    code, out, err = report(DATA / f"rewardmath_{model}.npz", "--plot", plot)
    assert (code, err) == (0, "")
    assert plot.read_bytes().startswith(b"\x89PNG")
    for name, (strict, ties) in COUNTS[model].items():
        assert cells(out, name)[:2] == [f"{100 * strict / 483:.2f} % ({strict})", f"{100 * ties / 483:.2f} % ({ties})"]
    assert f"Least score at the last step: {LAST[model]}." in out
    assert RIGHT[model] in out
    assert "the first response of each group is taken as the right one" in out
    assert "a random one is right in 10.00 %" in out


def test_labels_alone_print_the_baselines(report):
    code, out, err = report(DATA / "processbench_gsm8k.npz")
    assert (code, err) == (0, "")
    assert cells(out, "always right") == ["0.00", "100.00", "0.00", "400"]
    assert cells(out, "always the first step") == ["17.87", "0.00", "0.00", "400"]
    assert cells(out, "always the last step") == ["7.73", "0.00", "0.00", "400"]
    assert cells(out, "by the answer, else the middle step") == ["21.26", "100.00", "35.06", "400"]
    assert cells(out, "by the answer, else the first step") == ["15.94", "100.00", "27.50", "400"]
    _, out, _ = report(DATA / "processbench_math.npz")
    assert cells(out, "by the answer, else the middle step") == ["19.02", "100.00", "31.97", "1000"]


@pytest.mark.parametrize("model", published.REWARDMATH)
def test_json_lines_say_what_the_archive_says(report, tmp_path, model):
    data = published.rewardmath(model)
    steps = [part.tolist() for part in data.prob.tensor_split(data.offsets[1:-1])]
    lines = [{"probs": s, "group": i // 10, "correct": i % 10 == 0} for i, s in enumerate(steps)]
    by_rank = [line for rank in range(10) for line in lines[rank::10]]  # groups need not be neighbours
    _, expected, _ = report(DATA / f"rewardmath_{model}.npz")
    code, out, _ = report(written(tmp_path, *by_rank))
    assert code == 0
    assert out.splitlines()[1:] == expected.splitlines()[2:]


LINES = [
    {"probs": [0.9, 0.2, 0.8], "label": 1, "subset": "a", "group": "x", "correct": False, "answer": "7"},
    {"probs": [0.9, 0.95], "label": -1, "subset": "b", "group": "x", "correct": True, "answer": "8"},
    {"probs": [0.6], "label": -1, "subset": "b", "group": "x", "correct": False, "answer": "7"},
    {"probs": [0.3, 0.7], "label": 1, "subset": "b", "group": "y", "correct": False, "answer": "7"},
]


def test_process_bench_of_each_subset_and_their_plain_mean(report, tmp_path):
    code, out, _ = report(written(tmp_path, *LINES))
    assert code == 0
    assert cells(out, "a") == ["100.00", "none", "0.00", "1"]
    assert cells(out, "b") == ["0.00", "100.00", "0.00", "3"]
    assert cells(out, "plain mean") == ["0.00", "4"]
    assert "Least score at the last step: 25.00 % (1 of 4 responses)" in out


def test_the_best_threshold_is_found(report, tmp_path):
    lines = [{"probs": [0.8, 0.62, 0.9], "label": 1}, {"probs": [0.7, 0.75], "label": -1}]
    _, out, _ = report(written(tmp_path, *lines))
    assert cells(out, "all") == ["0.00", "100.00", "0.00", "2"]
    assert "0.65, F1 100.00" in out
    _, out, _ = report(written(tmp_path, *lines), "--threshold", "0.7")
    assert cells(out, "all") == ["100.00", "100.00", "100.00", "2"]
    _, out, _ = report(written(tmp_path, *lines), "--threshold", "0.7", "--strict")
    assert cells(out, "all") == ["100.00", "0.00", "0.00", "2"]


def test_json_has_the_numbers_of_the_text(report, tmp_path):
    path = written(tmp_path, *LINES)
    code, out, err = report(path, "--json", "--threshold", "0.25")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["responses"], result["steps"], result["steps_of_a_response"]) == (4, 8, [1, 3])
    assert result["least_score_is_last"] == {"responses": 1, "of": 4, "percent": 25.0}
    assert result["no_wrong_step"] == {"responses": 3, "of": 4, "percent": 75.0}
    assert result["best_of_n"]["groups_won"]["majority"] == {"ties_by_position": 0}
    assert result["best_of_n"]["groups_won"]["min"]["ties_by_position"] == 1
    assert result["best_of_n"]["percent_with_a_right_response"] == 50.0
    subset = result["process_bench"]["subsets"]["a"]
    assert (subset["error"], subset["correct"], subset["cases"]) == (100.0, None, 1)
    code, out, _ = report(DATA / "processbench_gsm8k.npz", "--json")
    assert code == 0
    assert json.loads(out)["baselines"]["predictors"]["always right"] == {
        "error": 0.0, "correct": 100.0, "f1": 0.0, "cases": 400,
    }  # fmt: skip


def test_majorities(report, tmp_path):
    _, out, _ = report(written(tmp_path, *LINES))
    assert cells(out, "majority") == ["0.00 % (0)"]
    assert cells(out, "weighted majority (product)") == ["50.00 % (1)"]
    assert cells(out, "min")[2] == "50.00 % (1)"
    assert "A right response is in 50.00 % of the groups; a random one is right in 16.67 %" in out


def test_logits_of_two_classes_of_three_and_of_one(report, tmp_path):
    z = [[1.0, -2.0, 0.5], [0.25, 3.0]]
    labels = [{"label": 1}, {"label": -1}]
    outputs = []
    for options, step in (
        ((), lambda v: v),
        ((), lambda v: [0.0, v]),
        (("--positive", "0"), lambda v: [v, 0.0]),
        (("--class-weights", "0,1,0"), lambda v: [0.0, v, -1e9]),
    ):
        lines = [{"logits": [step(v) for v in row], **label} for row, label in zip(z, labels, strict=True)]
        code, out, err = report(written(tmp_path, *lines), *options)
        assert (code, err) == (0, "")
        outputs.append(out)
    assert len(set(outputs)) == 1
    assert "100.00" in outputs[0]


def test_responses_without_steps_and_without_anything_else(report, tmp_path):
    code, out, _ = report(written(tmp_path, {"probs": []}, "", {"probs": [0.5, 0.1]}))
    assert code == 0
    assert "2 responses, 2 steps (0 to 2 a response)" in out
    assert "Best of" not in out
    assert "ProcessBench" not in out


def test_arrays_with_everything(report, tmp_path):
    s = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "scores.npz"
    offsets, correct = np.array([0, 3, 5, 9, 12]), np.array([False, True, True, False])
    label = np.array([-1, 0, 2, -1])
    np.savez(path, logits=s.numpy(), offsets=offsets, correct=correct, group_sizes=np.array([2, 2]), label=label)
    code, out, err = report(path)
    assert (code, err) == (0, "")
    scores = prm.score_steps(s, torch.from_numpy(offsets))
    table = prm.best_of_n_table(scores, torch.tensor([2, 2]), torch.from_numpy(correct))
    assert cells(out, "product")[0].endswith(f"({table.strict[0]})")
    f1 = prm.process_bench(scores.first_error, torch.from_numpy(label)).f1
    assert cells(out, "all")[2] == f"{f1:.2f}"


GOOD = {"probs": [0.5, 0.25], "label": 1, "subset": "s", "group": "g", "correct": True, "answer": 3}
MALFORMED = [
    ("{", "not JSON: Expecting property name"),
    ("[0.5]", "must be a JSON object, got [0.5]"),
    ({"label": 1}, "field 'probs': one of probs and logits must be there, got neither"),
    ({**GOOD, "logits": [1.0]}, "field 'probs': one of probs and logits must be there, got probs and logits"),
    ({**GOOD, "probs": 0.5}, "field 'probs': must be a list, got 0.5"),
    ({**GOOD, "probs": [0.5, 1.5]}, "field 'probs': step 1 must be a number in [0, 1], got 1.5"),
    ({**GOOD, "probs": [0.5, "0.5"]}, "field 'probs': step 1 must be a number in [0, 1], got \"0.5\""),
    ({**GOOD, "probs": [True, 0.5]}, "field 'probs': step 0 must be a number in [0, 1], got true"),
    ('{"probs": [0.5, NaN]}', "field 'probs': step 1 must be a number in [0, 1], got NaN"),
    ('{"logits": [0.5, NaN]}', "field 'logits': step 1 must be a number, or a list of one a class, got NaN"),
    ({"logits": [10**400]}, "field 'logits': step 0 must be a number, or a list of one a class, got 1000"),
    ({"logits": [[0.5, 1], []]}, "field 'logits': step 1 must be a number, or a list of one a class, got []"),
    ({**GOOD, "label": 2}, "field 'label': must be in 0..1, or -1 for 2 steps, got 2"),
    ({**GOOD, "label": -2}, "field 'label': must be in 0..1, or -1 for 2 steps, got -2"),
    ({**GOOD, "label": 0.5}, "field 'label': must be an integer, got 0.5"),
    ({**GOOD, "probs": [], "label": 0}, "field 'label': must be -1 for 0 steps, got 0"),
    ({**GOOD, "correct": 1}, "field 'correct': must be true or false, got 1"),
    ({**GOOD, "group": None}, "field 'group': must be text or an integer, got null"),
    ({**GOOD, "answer": [1]}, "field 'answer': must be text or an integer, got [1]"),
    ({**GOOD, "subset": 4}, "field 'subset': must be text, got 4"),
    ({key: GOOD[key] for key in GOOD if key != "label"}, "field 'label': missing, but line 1 has one"),
    (
        {**GOOD, "logits": [1.0, 2.0], "probs": None},
        "field 'probs': one of probs and logits must be there, got probs and logits",
    ),
    (
        {**{key: GOOD[key] for key in GOOD if key != "probs"}, "logits": [1.0, 2.0]},
        "field 'probs': missing, but line 1 has one",
    ),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED, ids=[str(i) for i in range(len(MALFORMED))])
def test_a_malformed_line_is_named_with_its_field(report, tmp_path, line, message):
    path = written(tmp_path, GOOD, "", line, GOOD)
    code, out, err = report(path)
    assert (code, out) == (1, "")
    assert err.startswith(f"{path}:3: {message}")
    assert err.count("\n") == 1


def test_a_field_that_the_first_line_lacks(report, tmp_path):
    path = written(tmp_path, {"probs": [0.5]}, {"probs": [0.5], "group": 1})
    assert report(path) == (1, "", f"{path}:2: field 'group': given, but line 1 has none\n")


@pytest.mark.parametrize(("second", "got"), [([[1.0, 2.0, 3.0]], "3 classes"), ([0.5], "a plain number")])
def test_steps_of_different_classes(report, tmp_path, second, got):
    path = written(tmp_path, {"logits": [[1.0, 2.0]]}, {"logits": second})
    code, _, err = report(path)
    assert code == 1
    assert err == f"{path}:2: field 'logits': step 0 must be as the steps before, 2 classes, got {got}\n"


def test_bytes_that_are_no_text(report, tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(b'{"probs": [0.5]}\n{"probs": [0.5], "note": "\xff"}\n')
    code, _, err = report(path)
    assert code == 1
    assert err.startswith(f"{path}:2: not JSON: ")


def test_an_empty_and_a_missing_file(report, tmp_path):
    path = written(tmp_path)
    assert report(path) == (1, "", f"{path}: no responses\n")
    missing = tmp_path / "missing.jsonl"
    assert report(missing) == (1, "", f"{missing}: No such file or directory\n")


ARRAYS = {"prob": np.array([0.5, 0.25]), "offsets": np.array([0, 1, 2]), "group_sizes": np.array([2])}
BAD_ARRAYS = [
    ({"prob": np.array([1, 0])}, "array 'prob': must hold floats, got torch.int64"),
    ({"prob": np.array(["a"])}, "array 'prob': must hold numbers, got <U1"),
    ({"prob": np.array([0.5, 1.5])}, "prob must give every step a probability in [0, 1], got 1.5"),
    ({"logits": np.array([0.5, 1.5])}, "array 'prob': one of prob and logits must be there, got prob and logits"),
    ({"prob": None}, "array 'prob': one of prob and logits must be there, got neither"),
    ({"offsets": None}, "array 'offsets': missing"),
    ({"offsets": np.array([0, 1, 3])}, "offsets must run from 0 to the 2 steps"),
    ({"offsets": np.array([0.0, 1, 2])}, "offsets must"),
    ({"group_sizes": np.array([3])}, "group_sizes must add up to the 2 responses"),
    ({"group_sizes": np.array([2, 1])}, "array 'group_sizes': must add up to the 2 responses"),
    ({"correct": np.array([True])}, "array 'correct': must have shape (2,), got (1,)"),
    ({"correct": np.array([1, 0])}, "correct must be bool"),
    ({"label": np.array([1, 0, 0])}, "array 'label': must have shape (2,), got (3,)"),
    ({"label": np.array([0.0, 1.0])}, "label must hold integers"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS, ids=[str(i) for i in range(len(BAD_ARRAYS))])
def test_unfit_arrays_are_named(report, tmp_path, change, message):
    path = tmp_path / "scores.npz"
    np.savez(path, **{name: array for name, array in (ARRAYS | change).items() if array is not None})
    code, out, err = report(path)
    assert (code, out) == (1, "")
    assert err.startswith(f"{path}: {message}")


def test_an_archive_of_objects_and_a_file_that_is_none(report, tmp_path):
    path = tmp_path / "scores.npz"
    np.savez(path, prob=np.array([{}]))
    whole = path.read_bytes()
    for content in (whole, whole[:-40], b"probs", b""):
        path.write_bytes(content)
        code, out, err = report(path)
        assert (code, out) == (1, "")
        assert err.startswith(f"{path}: not a numpy archive of plain arrays: ")


def test_options_that_do_not_fit_are_named(report, tmp_path):
    path = written(tmp_path, {"logits": [[0.0, 1.0]]})
    for option, value in (("positive", 3), ("threshold", 1.5), ("class-weights", "1")):
        code, _, err = report(path, f"--{option}", value)
        assert code == 1
        assert err.startswith(f"{path}: {option.replace('-', '_')} must ")


@needs_matplotlib
def test_a_plot_that_cannot_be_drawn(report, tmp_path):
    path = written(tmp_path, {"probs": [0.5, 0.1]})
    code, _, err = report(path, "--plot", tmp_path / "plot.unknown")
    assert code == 1
    assert err.startswith(f"{tmp_path / 'plot.unknown'}: Format 'unknown' is not supported")
    path = written(tmp_path, {"probs": [0.5]})
    assert report(path, "--plot", tmp_path / "plot.png")[::2] == (1, f"{path}: nothing to plot: no response has two steps\n")


def test_without_matplotlib_there_is_a_report_but_no_plot(report, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = written(tmp_path, {"probs": [0.5, 0.1]})
    assert report(path)[0] == 0
    assert report(path, "--plot", tmp_path / "plot.png") == (1, "", "--plot needs matplotlib: pip install matplotlib\n")


def test_the_command_line_and_its_help(tmp_path):
    path = written(tmp_path, "{}")
    command = [sys.executable, "-m", "ladderkern", "prm", "report"]
    ran = subprocess.run([*command, path], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr == f"{path}:1: field 'probs': one of probs and logits must be there, got neither\n"
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("probs", "logits", "label", "subset", "group", "correct", "answer", "offsets"))
