"""The quantile figure: true quantiles on the diagonal, and each way of missing it in words."""

import numpy as np
import pytest
import torch

from stablelightning.errors import DataError
from stablelightning.functional.intervals import gaussian_probability_below
from stablelightning.report.quantiles import quantile_calibration

NOISE = torch.randn(2000, generator=torch.Generator().manual_seed(0))


def below(shift=0.0, spread=1.0):
    """Of a standard normal target, predicted with another mean and standard deviation."""
    mean = torch.full_like(NOISE, shift)
    return gaussian_probability_below(mean, torch.full_like(NOISE, spread**2), NOISE)


def said(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_true_quantiles_follow_the_diagonal():
    figure = quantile_calibration(below())
    level, share = figure.axes[0].lines[1].get_xydata().T
    assert share == pytest.approx(level, abs=0.03)
    assert said(figure).endswith("over 2,000 targets, as chance alone explains")
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert sum(heights) == pytest.approx(100)
    assert heights == pytest.approx([10] * 10, abs=2.5)


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({"shift": 0.5}, "predictions are too high"),
        ({"shift": -0.5}, "predictions are too low"),
        ({"spread": 0.4}, "predictions are too sure"),
        ({"spread": 2.5}, "predictions are not sure enough"),
    ],
)
def test_each_way_of_missing_is_named(settings, ends):
    assert said(quantile_calibration(below(**settings))).endswith(ends)


def test_too_high_a_prediction_lies_above_the_diagonal():
    level, share = quantile_calibration(below(shift=0.5)).axes[0].lines[1].get_xydata().T
    assert (share > level).all()


def test_several_are_overlaid_and_the_last_is_told_of():
    figure = quantile_calibration({"one pass": below(spread=0.4), "samples": below()})
    assert said(figure).endswith("as chance alone explains")
    names = [text.get_text().partition(",")[0] for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["one pass", "samples", "95 % by chance"]
    assert len(figure.axes[1].patches) == 20


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "got 0 numbers"),
        ([0.5, np.nan], "1 of them not in"),
        ([0.5, 1.5, -0.1], "2 of them not in"),
        ({"a": [0.5], "b": [0.5, 0.6]}, "same rows"),
    ],
)
def test_what_does_not_fit_is_refused(values, says):
    with pytest.raises(DataError, match=says):
        quantile_calibration(values)
