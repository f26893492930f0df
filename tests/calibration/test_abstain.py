"""Abstention as a calibrator: fitted, kept as plain numbers, refused where it cannot judge."""

import io
from dataclasses import replace

import pytest
import torch

from stablelightning.calibration.abstain import Abstention
from stablelightning.errors import DataError, ModelError, RecipeError
from tests.model.test_abstain import classified, measured


@pytest.mark.parametrize("made", [classified, measured])
def test_a_fitted_one_decides_and_a_loaded_one_alike(made):
    known, target = made()
    new, _ = made(seed=1)
    fitted = Abstention(coverage=0.8).fit(known, target)
    kept = io.BytesIO()
    torch.save(fitted.state_dict(), kept)
    kept.seek(0)
    loaded = Abstention(coverage=0.8)
    loaded.load_state_dict(torch.load(kept, weights_only=True))
    assert loaded.fitted
    assert loaded.thresholds == fitted.thresholds
    assert torch.equal(loaded(new).reason, fitted(new).reason)
    assert 0.6 < fitted(new).answered.float().mean() < 0.95


def test_a_fresh_one_and_one_with_an_empty_state_decide_nothing():
    known, _ = classified()
    fresh = Abstention(risk=0.1)
    fresh.load_state_dict(fresh.state_dict())
    with pytest.raises(ModelError, match="Abstention must be fitted before"):
        fresh(known)


def test_it_is_not_judged_by_the_rows_that_it_was_fitted_on():
    known, target = classified()
    fitted = Abstention(coverage=0.8).fit(known, target, rows=torch.arange(400))
    with pytest.raises(DataError, match="must not be judged by the rows"):
        fitted(known, rows=torch.arange(400))


def test_settings_are_kept_and_refused_before_there_are_rows():
    made = Abstention(risk=0.2, confidence=0.9, unfamiliar=0.05)
    assert (made.risk, made.coverage, made.confidence, made.unfamiliar) == (0.2, None, 0.9, 0.05)
    with pytest.raises(RecipeError, match="either risk or coverage"):
        Abstention()


def test_a_risk_out_of_reach_says_the_best_that_can_be_had():
    known, target = classified()
    with pytest.raises(RecipeError, match="and the best of 400 rows is"):
        Abstention(risk=0.02).fit(known, (target + 1) % 4)


def test_a_promise_for_a_regression_is_refused():
    known, target = measured()
    with pytest.raises(DataError, match="right or wrong"):
        Abstention(risk=0.1, confidence=0.9).fit(known, target)


def test_logits_and_a_handful_of_rows_are_refused():
    known, target = classified()
    with pytest.raises(DataError, match="look like logits"):
        Abstention(coverage=0.8).fit(replace(known, mean=4 * known.mean - 2), target)
    with pytest.raises(DataError, match="needs 10 calibration rows or more, got 3"):
        Abstention(coverage=0.8).fit(*classified(rows=3))
