"""The depth plot shows every layer, before and after, and hides no zero and no NaN."""

import math
from itertools import pairwise

import numpy as np
import pytest

from stablelightning.errors import DataError
from stablelightning.report.depth import HEALTHY, depth_plot, depth_sentence
from tests.report.diagnoses import changed, cured, diagnosis, found, sick


def curves(axes, marker="o"):
    return [
        line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()) > 1
    ]


def test_both_panels_hold_the_measured_numbers_on_a_logarithmic_axis():
    figure = depth_plot(sick())
    for axes, quantity in zip(figure.axes, ("std", "gradient_rms"), strict=True):
        (line,) = curves(axes)
        np.testing.assert_allclose(
            line.get_ydata(), [getattr(layer, quantity) for layer in sick().layers]
        )
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < min(line.get_ydata())
        assert high > max(line.get_ydata())


def test_before_and_after_are_both_drawn_and_named():
    figure = depth_plot(cured())
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2] == [
        "before",
        "after",
    ]
    before, after = curves(figure.axes[0])
    assert before.get_ydata()[-1] == pytest.approx(0.5**49)
    assert after.get_ydata()[-1] == 1.0
    assert before.get_color() != after.get_color()


def test_layers_of_before_stand_under_their_names():
    now = diagnosis(6)
    now.before = diagnosis(6)
    now.before.layers = [now.before.layers[place] for place in (0, 2, 5)]
    before, _ = curves(depth_plot(now).axes[0])
    assert list(before.get_xdata()) == [0, 2, 5]


def test_the_band_ends_at_the_healthy_range():
    upper, lower = depth_plot(diagnosis(50, decay=3.0)).axes
    assert [text.get_text() for text in upper.texts] == ["exploding"]
    assert [text.get_text() for text in lower.texts] == ["exploding"]
    upper, lower = depth_plot(diagnosis(50, decay=0.5)).axes
    assert [text.get_text() for text in upper.texts] == ["vanishing"]
    edges = [line.get_ydata()[0] for line in upper.lines if line.get_linestyle() == "--"]
    assert edges == [HEALTHY[0]]


@pytest.mark.parametrize("depth", [1, 4, 50, 200])
def test_names_are_readable(depth):
    figure = depth_plot(diagnosis(depth))
    figure.draw_without_rendering()
    labels = [label for label in figure.axes[1].get_xticklabels() if label.get_text()]
    assert 1 <= len(labels) <= 63
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
    if depth > 1:
        assert labels[-1].get_text().isdigit()  # what all names share is said once, below
        assert "network.body." in figure.axes[1].get_xlabel()


def test_long_names_are_cut_in_front():
    figure = depth_plot(diagnosis(4, prefix="a" * 60))
    assert all(len(label.get_text()) <= 26 for label in figure.axes[1].get_xticklabels())
    assert figure.axes[1].get_xticklabels()[3].get_text().endswith("a6")


def test_zeros_and_what_is_not_finite_are_crosses_at_the_rim():
    broken = diagnosis(5)
    changed(broken, 1, std=0.0)
    changed(broken, 2, std=math.inf)
    changed(broken, 3, std=math.nan)
    axes = depth_plot(broken).axes[0]
    low, high = axes.get_ylim()
    crosses = {
        line.get_xdata()[0]: line.get_ydata()[0] for line in axes.lines if line.get_marker() == "x"
    }
    assert crosses == {1: low, 2: high, 3: high}


def test_a_ring_has_the_colour_of_the_worst_finding_of_its_layer():
    both = [found("a", "warning", "network.body.2"), found("b", "error", "network.body.2")]
    (ring,) = [
        line
        for line in depth_plot(diagnosis(4, findings=both)).axes[0].lines
        if line.get_markerfacecolor() == "none" and line.get_marker() == "o"
    ]
    assert ring.get_label() == "error"
    assert list(ring.get_xdata()) == [1]


def test_the_sentence_says_what_is_seen():
    assert depth_sentence(diagnosis()) == (
        "Over 50 layers the signal holds, and the gradient holds on its way back"
    )
    assert "falls 10¹⁵-fold, and the gradient falls 10¹⁵-fold" in depth_sentence(sick())
    assert "before the cures, the signal fell 10¹⁵-fold" in depth_sentence(cured())
    assert "grows 512-fold" in depth_sentence(diagnosis(10, decay=2.0))
    dead = diagnosis(5)
    changed(dead, 0, gradient_rms=0.0)
    assert "gradient vanishes" in depth_sentence(dead)
    changed(dead, 4, std=math.nan)
    assert "signal is not finite" in depth_sentence(dead)


def test_no_layers():
    with pytest.raises(DataError, match="at least one layer"):
        depth_plot(diagnosis(0))
