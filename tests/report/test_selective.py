"""The risk-coverage figure against counting by hand."""

import numpy as np
import pytest

from stablelightning.errors import DataError
from stablelightning.report.selective import risk_coverage


def lines(figure):
    return {line.get_label().partition(",")[0]: line for line in figure.axes[0].lines}


def test_each_point_is_the_risk_of_the_surest_rows():
    score, wrong = np.arange(20) / 20, np.tile([0, 0, 0, 1], 5)
    figure = risk_coverage({"entropy": score}, {"entropy": wrong})
    coverage, risk = lines(figure)["entropy"].get_xydata().T
    counts = np.arange(5, 21)
    assert coverage == pytest.approx(counts / 20)
    assert risk == pytest.approx([100 * wrong[:n].mean() for n in counts])
    assert lines(figure)["no order"].get_ydata() == pytest.approx([25, 25])


def test_the_best_order_has_all_errors_last():
    score, wrong = np.random.default_rng(0).random(40), np.arange(40) < 10
    figure = risk_coverage({"entropy": score}, {"entropy": wrong})
    coverage, risk = lines(figure)["the best order"].get_xydata().T
    assert risk == pytest.approx(100 * np.clip(1 - 0.75 / coverage, 0, None))


def test_the_second_series_is_the_one_that_is_told_of():
    score = np.arange(20) / 20
    wrong = np.arange(20) >= 18
    figure = risk_coverage({"plain": -score, "sampled": score}, {"plain": wrong, "sampled": wrong})
    said = " ".join(figure.get_suptitle().split())
    assert (
        said
        == "Leaving out the least certain 10 % of the rows changes wrong answers from 10 to 0 %"
    )


def test_what_was_decided_is_a_point_and_the_sentence():
    score, wrong = np.arange(20) / 20, np.arange(20) >= 15
    figure = risk_coverage({"e": score}, {"e": wrong}, answered=score < 0.8)
    assert lines(figure)["as decided"].get_xydata()[0] == pytest.approx([0.8, 100 / 16])
    assert "Leaving out 20 % of the rows changes wrong answers from 25 to 6.25 %" in (
        " ".join(figure.get_suptitle().split())
    )
    nobody = risk_coverage({"e": score}, {"e": wrong}, answered=score < 0)
    assert "as decided" not in lines(nobody)


def test_squared_errors_are_shown_by_their_root():
    score, error = np.arange(20) / 20, np.arange(20.0)
    figure = risk_coverage({"std": score}, {"std": error**2}, squared=True, label="error (mm)")
    last = lines(figure)["std"].get_xydata()[-1]
    assert last == pytest.approx([1, np.sqrt((error**2).mean())])
    assert figure.axes[0].get_ylabel() == "error (mm)"
    assert not figure.axes[0].collections  # a band needs right or wrong


def test_rows_of_equal_uncertainty_are_answered_together():
    figure = risk_coverage({"e": np.zeros(12)}, {"e": np.arange(12) % 2})
    assert lines(figure)["e"].get_xydata() == pytest.approx(np.array([[1.0, 50.0]]))


@pytest.mark.parametrize(
    ("uncertainty", "loss", "says"),
    [
        ({}, {}, "at least one"),
        ({"a": [1]}, {"b": [1]}, "must have the same names"),
        ({"a": [0.1, 0.2]}, {"a": [1]}, "2"),
        ({"a": [np.nan, 0.2]}, {"a": [1, 0]}, "NaN|finite"),
        ({"a": []}, {"a": []}, "row"),
    ],
)
def test_what_does_not_fit_is_refused(uncertainty, loss, says):
    with pytest.raises(DataError, match=says):
        risk_coverage(uncertainty, loss)


def test_answers_of_other_rows_are_refused():
    with pytest.raises(DataError, match="got 3 for 2 rows"):
        risk_coverage({"a": [0.1, 0.2]}, {"a": [1, 0]}, answered=[1, 1, 0])
