"""A few kills of the drill, and what it would call a fault."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.0", reason="the tests of transformers' models need it")
sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours

from fault_drill import IN_TIME, LIMIT, drill, judge


def test_when_a_rank_is_killed_at_a_random_module_the_others_raise_in_time(tmp_path):
    kills = list(drill(tmp_path, kills=2, seed=1, sizes=(2, 3)))
    assert [kill.outcome for kill in kills] == [IN_TIME] * 2, kills
    assert [len(kill.seconds) for kill in kills] == [1, 2]
    assert len({kill.place for kill in kills}) > 1


STEPS = [(0.5, "a"), (0.25, "b")]
RAISED = ("ok", (STEPS[:1], 101.0, "RuntimeError: gone"))


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (IN_TIME, RAISED),
        ("late", ("ok", (STEPS[:1], 101.0 + LIMIT, "RuntimeError: gone"))),
        ("no error", ("ok", (STEPS, None, ""))),
        ("crash", ("lost", "the process died")),
        ("hang", ("hung", "no answer")),
        ("wrong result", ("ok", ([(0.5, "a"), (0.26, "b")], 101.0, "RuntimeError: gone"))),
    ],
)
def test_the_worst_of_the_survivors_is_told(outcome, answer):
    answers = [RAISED, ("lost", "the process died"), answer]
    assert judge(answers, [STEPS] * 3, victim=1, death=100.0) == outcome


def test_a_drill_in_which_nobody_died_is_no_success():
    assert judge([RAISED, RAISED], [STEPS] * 2, victim=1, death=None) == "nobody died"
