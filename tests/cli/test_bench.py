"""``python -m ladderkern bench``: what is wrong is not timed, ratios are the right way round, and the results can be kept."""

import csv
import json
import math
import time

import pytest
import torch

import ladderkern
from ladderkern.cli import bench, main
from ladderkern.cli.bench_cases import CASES, COMPILED, At, Call, Case
from ladderkern.cli.failed import Failed
from ladderkern.testing.timing import Row, Spread

pytest.importorskip("click", reason="the command line needs it")

CPU = At(torch.device("cpu"), torch.float32, "check")


@pytest.fixture(autouse=True)
def allocator(monkeypatch):
    """The allocator of the tests' process stays as it is."""
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: "")


def waiting(seconds, value=1.0):
    """A builder of a call that takes so long and returns [value]."""

    def call():
        time.sleep(seconds)
        return [torch.tensor(value)]

    return lambda: Call(call)


def case(ours=1.0, peers=None, held=8):
    def make(at):
        plain = waiting(0, value=2.0)
        return Case("sleep", waiting(0.001, 2 * ours), peers or {"slow": waiting(0.004), COMPILED: plain}, plain, 8, held)

    return make


@pytest.fixture
def one_case(monkeypatch):
    """``one_case(make)``: the only case is called sleep."""
    return lambda make: monkeypatch.setattr(bench, "CASES", {"sleep": make})


def compared(*names, at=CPU):
    return list(bench.compared(names, at, lambda _, over: over))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_each_case_agrees_with_plain_pytorch(name, dtype):
    bench.check(name, CPU._replace(dtype=dtype))


@pytest.mark.parametrize("name", CASES)
def test_every_peer_of_a_case_runs(name):
    made = CASES[name](CPU)
    for peer, build in made.peers.items():
        if peer != COMPILED:
            build().step()
    assert made.held > 0


def _off(function, what):
    """The function with one of its results a thousandth too large."""
    return lambda *args, **kwargs: what(function(*args, **kwargs))


@pytest.mark.parametrize(
    ("name", "where", "function", "wrong"),
    [
        ("joint", ladderkern, "cross_entropy_with_discrepancy", lambda loss: loss * 1.001),
        ("discrepancy", ladderkern, "token_discrepancy_loss", lambda loss: loss * 1.001),
        ("prm", ladderkern.prm, "score_steps", lambda s: s._replace(log_product=s.log_product * 1.001)),
        ("prm-padded", ladderkern.prm, "score_steps", lambda s: s._replace(prob=s.prob * 1.001)),
        ("norm", ladderkern, "add_rms_norm", lambda pair: (pair[0], pair[1] * 1.001)),
    ],
)
def test_wrong_numbers_are_not_timed(monkeypatch, capsys, name, where, function, wrong):
    monkeypatch.setattr(where, function, _off(getattr(where, function), wrong))
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("timed"))
    assert main(["bench", "--quick", "spam", name]) == 1
    assert f"{name} is not timed, because it is wrong here: result" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["spam", "spam-rows", "spam-small"])
@pytest.mark.parametrize("change", [{"threshold": 4000.0}, {"lr": 1.001e-3}, {"betas": (0.9, 0.99)}, {"seed": 1}], ids=str)
def test_a_step_of_another_optimizer_is_not_timed(monkeypatch, name, change):
    if "seed" in change and name != "spam-rows":
        pytest.skip("a dense step draws nothing")
    made = ladderkern.SPAM
    monkeypatch.setattr(ladderkern, "SPAM", lambda params, **options: made(params, **{**options, **change}))
    with pytest.raises(Failed, match=f"{name} is not timed"):
        bench.check(name, CPU)


def test_a_ratio_is_the_peer_over_ours(one_case):
    one_case(case())
    (found,) = compared("sleep")
    (row,) = found.rows  # a small run compiles nothing
    assert row.quantity == "slow / ours"
    assert 1.5 < row.value.median < 8
    assert 0.4 < row.control.median < 2.5
    assert "slow" in bench.to_text(found)


def test_a_full_run_times_what_is_compiled_and_the_memory(one_case, monkeypatch):
    one_case(case())
    monkeypatch.setattr(bench, "_plain_pass", lambda at: (waiting(0.002), 16))
    (found,) = compared("sleep", at=CPU._replace(size="full"))
    assert [row.quantity for row in found.rows] == ["slow / ours", f"{COMPILED} / ours"]
    assert 0.5 < found.rows[0].share < 2  # half of its bytes in half of its time


def test_a_peer_that_does_not_run_is_left_out_and_the_reason_said(one_case):
    def broken():
        raise RuntimeError("no compiler\nand a long story")

    one_case(case(peers={"slow": waiting(0), "broken": broken}))
    (found,) = compared("sleep")
    assert [row.quantity for row in found.rows] == ["slow / ours"]
    assert found.notes == ["broken does not run here: no compiler"]
    one_case(case(peers={"broken": broken}))
    with pytest.raises(Failed, match="nothing to compare with: broken does not run here"):
        compared("sleep")


def test_a_case_that_does_not_fit_is_halved_until_it_does(one_case, monkeypatch):
    asked = []

    def make(at):
        asked.append(at.halved)
        return case(held=1000 >> at.halved)(at)

    one_case(make)
    monkeypatch.setattr(bench, "_free_memory", lambda device: 2100.0)  # half of it for 2 peers and two of ours
    (found,) = compared("sleep")
    assert max(asked) == 2
    assert found.notes == ["4 times smaller than usual, to fit into 0.0 GiB"]
    assert CPU._replace(halved=2).pick(check=(64, 7)) == (16, 7)


def test_numbers_are_the_same_each_time_and_exact_ones_are_them_in_float64():
    once, again = CPU.numbers(3, 5), CPU.numbers(3, 5)
    assert torch.equal(once, again)
    exact = CPU._replace(exact=True).numbers(3, 5)
    assert exact.dtype == torch.float64
    assert torch.equal(exact, once.double())


@pytest.fixture
def quick(one_case, monkeypatch):
    """A quick run of two cases, which takes a moment."""
    one_case(case())
    monkeypatch.setattr(bench, "CASES", dict.fromkeys(CASES, case()))


def test_the_command_prints_each_case_and_writes_table_and_plot(quick, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need it")
    table, plot = tmp_path / "new" / "ratios.csv", tmp_path / "new" / "ratios.png"
    assert main(["bench", "norm", "--quick", "prm", "norm", "--csv", str(table), "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("slow") == 2
    assert max(map(len, out.splitlines())) <= 100
    assert f"Written: {plot}" in out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["quantity"] for row in rows] == ["slow / ours"] * 2
    assert {"cpu", "threads", "torch version", "native", "dtype", "sizes"} <= rows[0].keys()
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_same_ratios_for_programs(quick, capsys):
    assert main(["bench", "norm", "--quick", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    (norm,) = result["cases"]
    assert norm["case"] == "norm"
    (ratio,) = norm["ratios"]
    assert ratio["q1"] <= ratio["median"] <= ratio["q3"]
    assert math.isfinite(ratio["control"])
    assert result["where"]["sizes"] == "quick"


def test_where_results_cannot_be_kept_nothing_is_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "compared", lambda *_: pytest.fail("timed"))
    (tmp_path / "file").touch()
    assert main(["bench", "--csv", str(tmp_path / "file" / "ratios.csv")]) == 1
    assert main(["bench", "--plot", str(tmp_path / "ratios.nonsense")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert "png" in err
    assert not (tmp_path / "ratios.nonsense").exists()


def test_a_backend_that_cannot_serve_is_one_line(capsys):
    with ladderkern.backend("cuda"):
        assert main(["bench", "norm", "--quick"]) == 1
    err = capsys.readouterr().err
    assert "cuda" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_one_line(capsys):
    assert main(["bench", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "--device cuda: torch sees no GPU here\n"


def test_figures_of_a_ratio():
    assert [bench.times(x) for x in (0.456, 9.99, 12.34, 99.96)] == ["0.46 ×", "9.99 ×", "12.3 ×", "100 ×"]


def test_the_plot_shows_every_ratio_on_a_line_of_its_own():
    pytest.importorskip("matplotlib", reason="plots need it")
    from ladderkern.cli.bench_plot import Picture, draw

    noise = Spread(1.0, 0.9, 1.1)
    rows = [Row("SPAM", f"{peer} / ours", Spread(x, 0.9 * x, 1.1 * x), noise) for peer, x in (("a", 0.5), ("b", 30.0))]
    axes = draw(Picture([bench.Comparison("spam", "SPAM", rows, [])], "title", "machine")).axes[0]
    ticks = dict(zip([label.get_text() for label in axes.get_yticklabels()], axes.get_yticks(), strict=True))
    dots = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() in "os"}
    assert dots == {(0.5, ticks["a"]), (30.0, ticks["b"])}
    assert {text.get_text() for text in axes.texts} >= {"0.50 ×", "30.0 ×"}
    low, high = axes.get_xlim()
    assert low < 0.45
    assert high > 33
