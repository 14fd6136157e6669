"""The line through measured all-reduces."""

from __future__ import annotations

import math

import pytest
import torch

from ladderkern.ladder import AlphaBeta, Calibration, RecordingCommunicator, calibrate, predict
from ladderkern.ladder.calibration import SIZES, fit_alpha_beta


@pytest.mark.parametrize(("alpha", "bandwidth"), [(24e-6, 93e9), (0.0, 1e9), (3e-4, 5e8)])
def test_a_line_is_found_again(alpha, bandwidth):
    line = AlphaBeta(alpha, bandwidth)
    fit = fit_alpha_beta(SIZES, [line.seconds(size) for size in SIZES])
    assert fit.alpha == pytest.approx(alpha, rel=1e-9, abs=1e-12)
    assert fit.bandwidth == pytest.approx(bandwidth, rel=1e-9)


def test_small_messages_weigh_as_much_as_large_ones():
    """A tenth more of the largest moves alpha by less than a tenth; squares of seconds would move it by a quarter."""
    line = AlphaBeta(1e-4, 1e9)
    seconds = [line.seconds(size) for size in SIZES]
    fit = fit_alpha_beta(SIZES, [*seconds[:-1], 1.1 * seconds[-1]])
    assert fit.alpha == pytest.approx(line.alpha, rel=0.1)


def test_a_line_never_falls_and_never_starts_below_zero():
    assert fit_alpha_beta([1000, 2000], [3e-6, 2e-6]).bandwidth == math.inf
    assert 2e-6 < fit_alpha_beta([1000, 2000], [3e-6, 2e-6]).alpha < 3e-6
    steep = fit_alpha_beta([1000, 2000], [1e-6, 3e-6])
    assert steep.alpha == 0.0
    assert 1000 / 1.5e-6 < steep.bandwidth < 1000 / 1e-6


def test_a_calibration_is_a_link_to_predict_with():
    line = AlphaBeta(40e-6, 2e9)
    link = Calibration(line, 4, SIZES, tuple(line.seconds(size) for size in SIZES), 0.03).link()
    run = predict("8b", 4, link=link).run
    assert run.all_reduce == line.seconds(4096 * 2)
    assert "measured: 40 us + 2 GB/s, 4 ranks" in run.link.title
    assert "measured here, the line is off by 3% at most" in predict("8b", 4, link=link).to_text()


@pytest.mark.parametrize("group", [None, RecordingCommunicator()])
def test_a_group_is_needed(group):
    with pytest.raises(ValueError, match="group must hold at least 2 ranks"):
        calibrate(group, dtype=torch.float32)
