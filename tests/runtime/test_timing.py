"""How peers are timed: what counts as time, in which order, and what becomes of the numbers."""

import csv
import itertools
from pathlib import Path

import pytest

from ladderkern.testing import timing
from ladderkern.testing.timing import Measured, Plan, Row, Spread, Target, machine, measure


class Clock:
    """A clock that only peers advance, and what they did."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def peer(self, name, seconds):
        clock = self

        class Peer:
            def __init__(self):
                clock.log.append(f"build {name}")

            def prepare(self):
                clock.now += 100

            def step(self):
                clock.log.append(name)
                clock.now += seconds

        return Peer


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    return clock


def test_only_steps_are_timed_and_untimed_ones_are_not(clock):
    m = measure({"a": clock.peer("a", 3), "b": clock.peer("b", 1)}, Plan(rebuilds=2, rounds=3, steps=2, untimed=1))
    assert m.times == {"a": [6.0] * 6, "b": [2.0] * 6}
    assert m.ratio("a", "b") == (3.0, 3.0, 3.0)
    assert clock.log.count("a") == clock.log.count("b") == 2 * (2 + 3 * (1 + 2))  # settled once a build
    assert clock.log.count("build a") == clock.log.count("build b") == 2


def _is_balanced(turns):
    """Whether in these orders each name comes before each other as often as behind it, and each is first equally often."""
    pairs = itertools.permutations(turns[0], 2)
    firsts = [turn[0] for turn in turns]
    return len({firsts.count(name) for name in turns[0]}) == 1 and all(
        2 * sum(turn.index(a) < turn.index(b) for turn in turns) == len(turns) for a, b in pairs
    )


def test_each_peer_is_built_and_called_before_each_other_equally_often(clock):
    builders = {name: clock.peer(name, 1) for name in "abc"}
    measure(builders, Plan(rebuilds=6, rounds=1))
    builds = [entry[-1] for entry in clock.log if entry.startswith("build")]
    assert _is_balanced([builds[i : i + 3] for i in range(0, 18, 3)])
    clock.log.clear()
    measure(builders, Plan(rebuilds=1, rounds=6))
    calls = clock.log[3 + 2 * 3 :]  # behind the builds and two steps of each that settle it
    assert _is_balanced([calls[i : i + 3] for i in range(0, 18, 3)])


def test_the_device_is_waited_for_before_and_after_each_step(clock):
    measure({"a": clock.peer("a", 1)}, Plan(1, 1), synchronize=lambda: clock.log.append("wait"))
    assert clock.log == ["build a", *["wait", "a", "wait"] * 3]


def test_progress_sees_every_round(clock):
    seen = []

    def progress(rounds):
        for i in rounds:
            seen.append(i)
            yield i

    measure({"a": clock.peer("a", 1)}, Plan(rebuilds=2, rounds=3), progress=progress)
    assert seen == list(range(6))


def test_a_ratio_is_taken_round_by_round():
    m = Measured({"a": [1.0, 20.0, 300.0], "b": [1.0, 10.0, 100.0]}, {})
    assert m.ratio("a", "b") == Spread(2.0, 1.5, 2.5)
    assert Spread.of([7.0]) == (7.0, 7.0, 7.0)


def test_a_target_is_met_by_the_median():
    value = Spread(1.0, 0.5, 2.0)
    assert [Row("c", "q", value, target=target).verdict for target in (None, Target("<=", 1.0), Target(">=", 1.5))] == [
        "", "met", "missed",
    ]  # fmt: skip


def test_lines_are_written_with_versions_and_machine(tmp_path):
    path = tmp_path / "new" / "ratios.csv"
    rows = [Row("c", "a / b", Spread(2.0, 1.0, 3.0), Spread(1.0, 0.9, 1.1), 0.5), Row("c", "a / d", Spread(4.0, 4.0, 4.0))]
    timing.write_csv(path, rows, machine(["pytest", "no-such-package"]))
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["quantity"], first["median"], first["control_q3"], first["share_of_limit"]) == ("a / b", "2.0", "1.1", "0.5")
    assert (second["control"], second["share_of_limit"]) == ("", "")
    assert (first["pytest version"], first["no-such-package version"]) == (pytest.__version__, "not installed")
    assert first["cpu"]
    assert first["ladderkern version"]


def test_the_bench_takes_all_of_it_from_the_package():
    source = (Path(__file__).parents[2] / "bench" / "harness.py").read_text()
    assert "def " not in source
    assert "class " not in source
