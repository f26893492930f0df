"""The picture of a race names every curve, and says what was chosen."""

import math
from itertools import pairwise

import pytest

from stablelightning.errors import DataError
from stablelightning.report.activation import race_figure

pytest.importorskip("matplotlib")


def evidence(**changes):
    steps = range(0, 11, 2)
    curves = {
        name: [[s, rate ** (s / 10)] for s in steps] for name, rate in (("relu", 0.5), ("elu", 0.4))
    }
    base = {"chosen": "elu", "incumbent": "relu", "target": 0.5, "seeds": 3}
    return {**base, "curves": {**curves, "tanh": []}, **changes}


def names(figure):
    return {text.get_text() for text in figure.axes[0].texts}


def test_every_curve_has_its_name_and_the_choice_stands_out():
    figure = race_figure(evidence())
    assert names(figure) == {"relu", "elu"}
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["elu"].get_linewidth() > lines["relu"].get_linewidth()
    assert lines["relu"].get_linestyle() == "--"
    assert figure.axes[0].get_yscale() == "log"


def test_names_do_not_cover_each_other():
    curves = {f"a{i}": [[0, 1.0], [10, 0.5 + i * 1e-4]] for i in range(8)}
    figure = race_figure(evidence(chosen="a3", incumbent="a0", curves=curves))
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert min(b - a for a, b in pairwise(heights)) > 0.05


def test_what_stays_is_said_to_be_kept():
    assert race_figure(evidence(chosen="relu")).get_suptitle() == "relu, kept"


def test_losses_below_zero_and_gaps_are_drawn():
    curves = {"a": [[0, 1.0], [5, None], [10, -2.0]], "b": [[0, 1.0], [5, None], [10, None]]}
    figure = race_figure(evidence(chosen="a", incumbent="b", target=None, curves=curves))
    assert figure.axes[0].get_yscale() == "linear"
    (line,) = figure.axes[0].lines
    assert not any(math.isnan(value) for value in line.get_ydata())


def test_nobody_raced():
    with pytest.raises(DataError, match="got none"):
        race_figure(evidence(curves={"a": []}))
