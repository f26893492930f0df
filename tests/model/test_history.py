"""Readings in bounded memory."""

import math

import pytest
import torch

from stablelightning.model import history
from stablelightning.model.history import History


def filled(readings: int) -> History:
    kept = History(["a", "b"])
    kept.begin(["one", "two"])
    for step in range(readings):
        kept.add(step, {"one": {"a": float(step)}, "two": {"b": -1.0}})
    return kept


def test_table_is_by_step_and_layer():
    kept = filled(3)
    torch.testing.assert_close(
        kept.table("a"), torch.tensor([[n, math.nan] for n in range(3)]), equal_nan=True
    )
    assert kept.table("b")[:, 1].tolist() == [-1.0] * 3


@pytest.mark.parametrize("readings", [8, 9, 100, 1000])
def test_long_runs_are_thinned_evenly(monkeypatch, readings):
    monkeypatch.setattr(history, "MOST_READINGS", 8)
    kept = filled(readings)
    assert 4 <= len(kept.steps) <= 8
    gaps = {b - a for a, b in zip(kept.steps, kept.steps[1:], strict=False)}
    assert len(gaps) == 1
    assert kept.steps[0] == 0
    assert kept.steps[-1] + max(gaps) >= readings
    assert kept.table("a")[:, 0].tolist() == kept.steps


@pytest.mark.parametrize("readings", [0, 3, 13])
def test_goes_on_where_it_was_saved(monkeypatch, readings):
    monkeypatch.setattr(history, "MOST_READINGS", 8)
    first, second = filled(readings), History(["a", "b"])
    second.load_state_dict(first.state_dict())
    for kept in (first, second):
        kept.begin(["one", "two"])
        for step in range(readings, readings + 9):
            kept.add(step, {"one": {"a": float(step)}})
    assert first.steps == second.steps
    torch.testing.assert_close(first.table("a"), second.table("a"), equal_nan=True)


def test_what_is_not_a_number_is_infinite():
    kept = filled(0)
    kept.add(0, {"one": {"a": math.nan}})
    assert kept.table("a")[0, 0] == math.inf


def test_other_layers_begin_anew():
    kept = filled(3)
    kept.begin(["three"])
    assert kept.steps == []
    assert kept.table("a").shape == (0, 1)
