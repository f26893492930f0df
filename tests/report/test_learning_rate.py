"""Pictures of what was tried: the marks lie where the numbers are."""

import itertools
import math

import pytest

from stablelightning.errors import DataError
from stablelightning.report.learning_rate import learning_rate_figure

SWEEP = {
    "rates": [10.0**n for n in range(-5, 2)],
    "losses": [2.3, 2.2, 2.3, 1.5, 1.0, 4.0, None],
    "smoothed": [2.3, 2.25, 2.26, 1.9, 1.4, 2.7, 2.7],
    "valley": [1e-3, 1e-1],
}
RUNS = [
    {"rate": 0.003, "losses": [2.3, 2.0, 1.5], "score": 1.5, "stable": True},
    {"rate": 0.01, "losses": [2.3, 1.6, 1.0], "score": 1.0, "stable": True},
    {"rate": 0.03, "losses": [2.3, 9.0, None], "score": None, "stable": False},
]
FOUND = {"suggested": 0.01, "diverged_at": 1.0, "own": 0.5, "applied": True}


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_sweep_and_runs_stand_side_by_side():
    figure = learning_rate_figure({**SWEEP, **FOUND, "runs": RUNS})
    sweep, runs = figure.axes
    assert sweep.get_xscale() == "log"
    lines = {line.get_xdata()[0] for line in sweep.lines if len(set(line.get_xdata())) == 1}
    assert lines == {0.01, 1.0, 0.5}
    assert texts(sweep) == ["valley", "diverged 1", "was set 0.5", "found 0.01"]
    assert sorted(texts(runs)) == ["0.003", "0.01", "0.03, diverged"]
    assert figure.get_suptitle() == "A learning rate of 0.01 in place of 0.5"


def test_an_explosion_does_not_flatten_the_curve():
    losses = [2.3, 2.2, 2.3, 1.5, 1.0, 1e9, None]
    smoothed = [2.3, 2.25, 2.26, 1.9, 1.4, 1e8, 1e8]
    history = {**SWEEP, **FOUND, "losses": losses, "smoothed": smoothed, "runs": []}
    low, high = learning_rate_figure(history).axes[0].get_ylim()
    assert low < 1.0
    assert high < 4.0


def test_names_of_runs_stay_beside_the_axes():
    runs = [{**RUNS[2], "rate": 2.0**n} for n in range(9)] + RUNS[:1]
    (axes,) = learning_rate_figure({**FOUND, "runs": runs}).axes
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert heights[-1] <= 1.0
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) > 0.05


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"suggested": None}, "No learning rate was found; it stays at 0.5"),
        ({"applied": False}, "A learning rate of 0.01 is suggested; 0.5 is kept"),
        ({"suggested": 0.5}, "The learning rate of 0.5 is kept"),
    ],
)
def test_the_sentence_says_what_came_of_it(found, words):
    figure = learning_rate_figure({**SWEEP, **FOUND, **found, "runs": []})
    assert figure.get_suptitle() == words


def test_a_run_that_broke_at_once_is_drawn():
    runs = [{"rate": 1.0, "losses": [None], "score": None, "stable": False}, RUNS[0]]
    figure = learning_rate_figure({**FOUND, "runs": runs})
    assert all(math.isfinite(v) for v in figure.axes[0].get_ylim())


def test_all_broken_is_drawn():
    runs = [{"rate": 1.0, "losses": [None], "score": None, "stable": False}]
    figure = learning_rate_figure({**FOUND, "suggested": None, "runs": runs})
    assert texts(figure.axes[0]) == ["1, diverged"]


def test_nothing_tried_is_refused():
    with pytest.raises(DataError, match="needs rates that were tried"):
        learning_rate_figure({**FOUND, "runs": []})
