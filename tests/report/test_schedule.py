"""The picture and the words of a schedule."""

import pytest

from stablelightning.model.schedule_plan import SchedulePlan
from stablelightning.report.schedule import schedule_plot, schedule_section, schedule_sentence


def plan(*rates: tuple[float, ...], **settings) -> SchedulePlan:
    steps = len(rates[0])
    usual = {
        "name": "Some",
        "groups": tuple(f"g{n}" for n in range(len(rates))),
        "steps": tuple(range(steps)),
        "momenta": (),
        "training": steps,
    }
    return SchedulePlan(rates=rates, **{**usual, **settings})


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((1.0, 0.5, 0.1), "Some over 3 steps: from 1 down to 0.1"),
        ((0.1, 1.0, 0.5), "Some over 3 steps: from 0.1 up to 1 at step 1, and down to 0.5"),
        ((0.1, 0.5, 1.0), "Some over 3 steps: from 0.1 up to 1 at step 2"),
        ((0.1, 0.1, 0.1), "Some over 3 steps: 0.1 throughout"),
    ],
)
def test_the_sentence_says_where_the_rate_goes(rates, words):
    assert schedule_sentence(plan(rates)) == words


def test_a_plateau_is_said_and_not_drawn():
    section = schedule_section(plan((0.1, 0.1), waits="val/loss"))
    assert "0.1 until val/loss stands still" in section.lead
    assert section.figure is None


def test_groups_that_go_the_same_way_share_a_line():
    figure = schedule_plot(plan((1.0, 0.5), (1.0, 0.5), (0.1, 0.05)))
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["g0 (and 1 more)", "g2"]


def test_many_groups_are_a_band():
    figure = schedule_plot(plan(*[(1.0 / n, 0.5 / n) for n in range(1, 10)]))
    (axes,) = figure.axes
    assert len(axes.lines) == 9
    assert len(axes.collections) == 1
    assert axes.get_legend() is None


def test_momentum_gets_a_panel_where_it_moves():
    moving = plan((1.0, 0.5), momenta=((0.95, 0.85),))
    assert [a.get_ylabel() for a in schedule_plot(moving).axes] == ["learning rate", "momentum"]
    still = plan((1.0, 0.5), momenta=((0.9, 0.9),))
    assert len(schedule_plot(still).axes) == 1


def test_jumps_are_drawn_as_jumps():
    jumps = schedule_plot(plan((1.0, 1.0, 1.0, 0.1, 0.1, 0.1))).axes[0]
    smooth = schedule_plot(plan((1.0, 0.8, 0.6, 0.4, 0.2, 0.1))).axes[0]
    assert jumps.lines[0].get_drawstyle() == "steps-post"
    assert smooth.lines[0].get_drawstyle() == "default"


def test_rates_that_are_mostly_tiny_are_drawn_by_powers_of_ten():
    assert schedule_plot(plan((1.0, 1e-3, 1e-4, 1e-5))).axes[0].get_yscale() == "log"
    assert schedule_plot(plan((1.0, 0.5, 0.1, 0.0))).axes[0].get_yscale() == "linear"
    assert schedule_plot(plan((1.0, 0.0, 0.0, 0.0))).axes[0].get_ylim()[0] > 0


@pytest.mark.parametrize("rates", [(0.0, 0.0), (1.0,)])
def test_the_smallest_plans_are_drawn(rates):
    assert schedule_plot(plan(rates)).axes[0].get_ylim()[1] > 0


def test_a_training_that_ended_early_is_told_and_marked():
    section = schedule_section(plan((1.0, 0.8, 0.6, 0.4)), stopped=2)
    assert section.numbers == {"schedule/steps_planned": 4.0, "schedule/steps_taken": 2.0}
    assert "ended at step 2 of 4, at a rate of 0.6" in section.notes[0]
    assert any("training ended" in text.get_text() for text in section.figure.axes[0].texts)
    whole = schedule_section(plan((1.0, 0.8)), stopped=2)
    assert whole.notes == []
    assert len(whole.figure.axes[0].texts) == 0


def test_what_was_not_looked_at_is_said():
    section = schedule_section(plan((1.0, 0.5), training=9))
    assert section.notes == ["only the first 2 steps were looked at"]
