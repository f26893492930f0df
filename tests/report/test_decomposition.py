"""The scatter of the parts shows every row, and the borders of the rule where they are."""

import numpy as np
import pytest
import torch

from stablelightning.errors import DataError
from stablelightning.model.abstain import Thresholds
from stablelightning.report.decomposition import decomposition_scatter

NOISE, DOUBT = np.array([0.1, 0.5, 0.9, 0.2]), np.array([0.0, 0.1, 0.3, 0.6])
WRONG = np.array([False, False, True, True])


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def labels(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_every_row_is_a_dot_of_its_kind():
    figure = decomposition_scatter(torch.tensor(NOISE), DOUBT, WRONG)
    right, wrong = (dots.get_offsets() for dots in figure.axes[0].collections)
    assert np.array_equal(right, np.c_[NOISE, DOUBT][:2])
    assert np.array_equal(wrong, np.c_[NOISE, DOUBT][2:])
    assert labels(figure) == ["right (2)", "wrong (2)"]
    assert texts(figure) == []


def test_the_sentence_tells_the_models_share_and_how_well_the_total_separates():
    said = decomposition_scatter(NOISE, DOUBT, WRONG).get_suptitle().replace("\n", " ")
    assert said.startswith("37 % of the uncertainty of 4 rows is the model's own")
    assert said.endswith("AUROC 1.00")
    none_wrong = decomposition_scatter(NOISE, DOUBT, WRONG & False)
    assert "AUROC" not in none_wrong.get_suptitle()


def test_borders_are_those_of_the_rule():
    figure = decomposition_scatter(NOISE, DOUBT, WRONG, thresholds=Thresholds(0.65, 0.5))
    total, unheard, noise = figure.axes[0].lines
    assert total.get_xdata() + total.get_ydata() == pytest.approx(0.65)
    assert total.get_ydata().max() <= 0.5
    assert unheard.get_ydata() == pytest.approx([0.5, 0.5])
    assert noise.get_xdata() == pytest.approx([0.65, 0.65])
    assert texts(figure) == ["out of distribution above", "aleatoric", "epistemic"]


def test_borders_that_no_row_comes_near_are_left_out():
    figure = decomposition_scatter(NOISE, DOUBT, WRONG, thresholds=Thresholds(9.0))
    assert texts(figure) == []


def test_many_rows_are_thinned_and_all_are_counted():
    figure = decomposition_scatter(np.ones(20_000), np.ones(20_000), np.zeros(20_000))
    assert len(figure.axes[0].collections[0].get_offsets()) == 4000
    assert labels(figure)[0] == "right (20,000)"


def test_no_uncertainty_at_all_is_no_error():
    figure = decomposition_scatter([0.0, 0.0], [0.0, 0.0], [0, 1], thresholds=Thresholds(0.0))
    assert figure.get_suptitle().startswith("0 % of the uncertainty")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], [], []), "at least one"),
        (([0.1], [0.1, 0.2], [0]), "got 1, 2 and 1"),
        (([np.nan, 1], [0.1, np.inf], [0, 1]), "got 2 rows that are not"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, says):
    with pytest.raises(DataError, match=says):
        decomposition_scatter(*arguments)
