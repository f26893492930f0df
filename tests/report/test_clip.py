"""What the pictures of clipping say."""

import math

import numpy as np
import pytest

from stablelightning.errors import DataError
from stablelightning.model.clip import ClipRecord
from stablelightning.report.clip import clipping_curve, threshold_histogram


def recorded(norms, bound=2.0):
    record = ClipRecord()
    for norm in norms:
        record.add(norm, bound)
    return record


def heights(axes):
    return sum(patch.get_height() for patch in axes.patches)


def test_every_norm_is_in_the_histogram():
    norms = np.random.default_rng(0).lognormal(size=50)
    figure = threshold_histogram([*norms, math.nan, 0.0], 3.0)
    axes = figure.axes[0]
    assert heights(axes) == 50
    lines = [float(line.get_xdata()[0]) for line in axes.lines]
    assert lines == pytest.approx([norms.mean(), 3.0])
    assert figure.get_suptitle().startswith(f"{(norms > 3).sum()} of 50 norms lie above")


@pytest.mark.parametrize("norms", [[1.0], [2.0] * 9, [1e-12, 1e12]], ids=str)
def test_histograms_of_odd_norms(norms):
    axes = threshold_histogram(norms, 1.0).axes[0]
    assert heights(axes) == len(norms)
    low, high = axes.get_xlim()
    assert low < min(norms) <= max(norms) < high


def test_nothing_to_show_is_said():
    with pytest.raises(DataError, match="finite and above zero, got none of 2"):
        threshold_histogram([0.0, math.nan], 1.0)
    with pytest.raises(DataError, match="a finite measure"):
        clipping_curve(recorded([math.nan]))


def test_the_curve_and_its_sentence():
    figure = clipping_curve(recorded([0.5, 6.0, math.nan, 1.0, 8.0]))
    curve, bound = figure.axes[0].lines
    np.testing.assert_array_equal(curve.get_ydata(), [0.5, 6.0, math.nan, 1.0, 8.0])
    assert set(bound.get_ydata()) == {2.0}
    assert " ".join(figure.get_suptitle().split()) == (
        "2 of 5 steps were clipped; the largest measure was 4 times the threshold; 1 was not finite"
    )


def test_the_first_norms_are_drawn_beside():
    figure = clipping_curve(recorded([0.5, 1.0, 3.0]), first=[0.5, 1.0])
    assert len(figure.axes) == 2
    assert heights(figure.axes[1]) == 2


def test_a_measure_without_a_bound_is_a_plain_curve():
    axes = clipping_curve(recorded([0.1, 0.2], bound=0.0), label="share").axes[0]
    assert axes.get_yscale() == "linear"
    assert axes.get_ylabel() == "share"
