"""The heat map of a monitored run: what is drawn, and what the sentence above it says."""

import math

import numpy as np
import pytest

from stablelightning.errors import DataError
from stablelightning.report.monitor import gradient_heat_map

LAYERS = ["net.0", "net.2", "net.4"]
NORMS = [[1e-5, 1e-3, 1.0], [0.1, 0.2, 0.5]]


def mesh(figure):
    (drawn,) = figure.axes[0].collections
    return drawn


def test_colours_are_powers_of_ten_by_layer_and_step():
    figure = gradient_heat_map([0, 50], LAYERS, NORMS)
    drawn = mesh(figure).get_array()
    np.testing.assert_allclose(drawn, np.log10(NORMS).T)
    assert mesh(figure).get_clim() == (-5, 0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == LAYERS
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the input on top


def test_the_sentence_compares_the_first_layer_with_the_last():
    said = gradient_heat_map([0, 50], LAYERS, NORMS).get_suptitle()
    assert said.replace("\n", " ") == (
        "Of the gradient of net.4, net.0 gets 1/100,000 at step 0 and 20% at step 50"
    )


def test_nothing_is_drawn_where_nothing_was_measured():
    figure = gradient_heat_map([0, 50], LAYERS, [[math.nan, 1.0, 1.0], [0.0, math.inf, 1.0]])
    drawn = np.ma.filled(mesh(figure).get_array().astype(float), np.nan)
    assert np.isnan(drawn).tolist() == [[True, False], [False, True], [False, False]]


def test_one_step_and_many_layers_can_be_drawn():
    layers = [f"encoder.layers.{n}.self_attention.projection" for n in range(200)]
    figure = gradient_heat_map([10], layers, np.ones((1, 200)))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) <= 32
    assert all(len(name) <= 28 for name in names)
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize(
    ("steps", "norms", "message"),
    [([0], [[1.0, 1.0]], "steps, layers"), ([], [], "steps, layers"), ([0], [[0.0] * 3], "zero")],
)
def test_what_cannot_be_drawn_is_refused(steps, norms, message):
    with pytest.raises(DataError, match=message):
        gradient_heat_map(steps, LAYERS, norms)
