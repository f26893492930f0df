"""What a run tells of its gap."""

import pytest

from stablelightning.callbacks import MeasureGap
from stablelightning.cli.gap import gap_of_run
from stablelightning.model.gap import Gap
from stablelightning.report.gap import gap_curve, gap_section
from tests.callbacks.modules import Plain, quiet_trainer

GAPS = [Gap(9, 0.5, 0.6), Gap(19, 0.25, 0.55)]


def test_the_curve_has_both_losses():
    lines = {line.get_label(): line for line in gap_curve(GAPS).axes[0].lines}
    assert list(lines["training"].get_ydata()) == [0.5, 0.25]
    assert list(lines["validation"].get_ydata()) == [0.6, 0.55]
    assert list(lines["training"].get_xdata()) == [9, 19]


@pytest.mark.parametrize(("train", "scale"), [(0.1, "log"), (0.0, "linear"), (-1.0, "linear")])
def test_losses_that_are_not_positive_have_a_linear_axis(train, scale):
    assert gap_curve([Gap(1, train, 0.5)]).axes[0].get_yscale() == scale


def test_the_section_has_the_last_numbers_and_the_advice():
    section = gap_section(GAPS, ["Raise the rate."])
    assert section.numbers == {
        "regularize/gap": pytest.approx(0.3),
        "regularize/train": 0.25,
    }
    assert section.notes == ["Raise the rate."]
    assert "nothing to advise" not in section.lead
    assert gap_section([], []) is None


def test_a_run_tells_of_its_gap_where_it_was_measured():
    callback = MeasureGap()
    callback.gaps = GAPS
    assert gap_of_run(quiet_trainer(callback), Plain()).name == "gap"
    assert gap_of_run(quiet_trainer(MeasureGap()), Plain()) is None
    assert gap_of_run(quiet_trainer(), Plain()) is None
