"""Break-evens are where the curves cross, and the advice is what the numbers say."""

from __future__ import annotations

import itertools

import pytest

from ladderkern.ladder import AlphaBeta, predict
from ladderkern.ladder.advice import FROM, TO, advice, break_even, break_even_with_parallel, microseconds, sweep


def at(run, all_reduce):
    return run._replace(link=run.link.times(all_reduce / run.all_reduce))


@pytest.mark.parametrize("link", ["nvlink", "no-p2p", "pcie"])
@pytest.mark.parametrize("worth", [1.05, 1.2])
def test_a_ladder_is_worth_it_between_its_break_evens(link, worth):
    run = predict("70b", 8, link=link).run
    between = break_even(run, worth)
    for edge, inside in zip(between, (1.01, 0.99), strict=True):
        if edge in (FROM, TO):
            continue
        assert at(run, edge).speed_up("ladder") == pytest.approx(worth, rel=1e-4)
        assert at(run, edge * inside).speed_up("ladder") > worth > at(run, edge / inside).speed_up("ladder")


def test_a_ladder_passes_parallel_attention_and_falls_behind_it_again_on_slow_links():
    run = predict("70b", 8).run
    between = break_even_with_parallel(run)
    assert 1e-6 < between.shortest < run.all_reduce < between.longest < 1e-3
    for edge in between:
        assert at(run, edge).speed_up("ladder") == pytest.approx(at(run, edge).speed_up("parallel"), rel=1e-4)


def test_where_it_never_pays_there_is_no_break_even():
    assert break_even(predict("70b", 8).run, worth=5.0) is None


def test_a_sweep_holds_each_architecture_from_fast_links_to_slow_ones():
    run = predict("70b", 8).run
    swept = sweep(run, ("ladder", "no communication"))
    assert (swept.all_reduce[0], swept.all_reduce[-1]) == (pytest.approx(FROM), pytest.approx(TO))
    assert all(slower > faster for faster, slower in itertools.pairwise(swept.speed_ups["no communication"]))
    for time, speed_up in list(zip(swept.all_reduce, swept.speed_ups["ladder"], strict=True))[::30]:
        assert at(run, time).speed_up("ladder") == speed_up


@pytest.mark.parametrize("function", [break_even, break_even_with_parallel, lambda run: sweep(run, ("ladder",))])
def test_one_rank_has_no_link(function):
    with pytest.raises(ValueError, match="tp must be at least 2 to compare links, got 1"):
        function(predict("70b", 1).run)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"nvlink": True}, ("24 us", "1.32x", "7.3 us one-shot or multimem all-reduce makes the standard model itself 1.27x",
                            "leaves a ladder 1.10x", "so take that first")),
        ({"nvlink": True, "tp": 4, "batch": 64}, ("leaves a ladder 1.0", "too little to retrain for")),
        ({"nvlink": False}, ("63 us", "1.55x", "parallel attention and MLP: 1.40x", "worth it if you can train")),
        ({"link": "fast"}, ("7.3 us", "1.10x", "if you train anew, compare both")),
        ({"link": AlphaBeta(2e-6, 1e12)}, ("2.0 us", "too little to retrain a model for; 1.05x it would be from 3.")),
        ({"tp": 1}, ("On one rank there is no all-reduce to hide",)),
    ],
)  # fmt: skip
def test_one_sentence_of_advice(changes, parts):
    text = advice(predict("70b", **changes))
    for part in parts:
        assert part in text
    assert text.endswith(".")
    assert ". " not in text


def test_the_advice_goes_by_what_retraining_is_worth():
    prediction = predict("70b", 8, nvlink=False)
    assert "too little to retrain" not in advice(prediction)
    assert "too little to retrain a model for; 1.60x it would be on no link" in advice(prediction, worth=1.6)


def test_microseconds():
    assert [microseconds(seconds) for seconds in (7.26e-6, 24.18e-6, 815.4e-6)] == ["7.3 us", "24 us", "815 us"]
