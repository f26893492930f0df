from dataclasses import replace

import pytest
import torch

from stablelightning.calibration import QuantileRecalibration
from stablelightning.errors import DataError, ModelError
from stablelightning.metrics import QuantileCalibrationError
from stablelightning.model.plain_prediction import plain_prediction
from stablelightning.nn.heads import Gaussian


def lopsided(count: int, seed: int):
    """Errors of an exponential distribution, which no factor of the variance mends."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, generator=generator)
    variance = 0.5 + torch.rand(count, generator=generator)
    errors = -torch.rand(count, generator=generator).clamp(min=1e-6).log()
    target = mean + 2 * variance.sqrt() * errors
    return plain_prediction(Gaussian(mean, variance), task="regression"), target


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_intervals_of_new_rows_hold_what_they_promise(level):
    known, target = lopsided(4000, seed=0)
    new, new_target = lopsided(4000, seed=1)

    def share(prediction) -> float:
        lower, upper = prediction.interval(level)
        return ((lower <= new_target) & (new_target <= upper)).double().mean().item()

    assert share(new) < level - 0.1
    assert share(QuantileRecalibration().fit(known, target)(new)) == pytest.approx(level, abs=0.025)


def test_mean_and_variance_are_those_of_the_recalibrated_distribution():
    known, target = lopsided(20_000, seed=0)
    corrected = QuantileRecalibration().fit(known, target)(known)
    std = known.std
    torch.testing.assert_close(corrected.mean, known.mean + 2 * std, atol=0.1, rtol=0)
    torch.testing.assert_close(corrected.total, 4 * known.total, atol=0, rtol=0.1)
    assert corrected.samples is None


def test_the_quantiles_and_not_a_gaussian_are_judged():
    known, target = lopsided(4000, seed=0)
    new, new_target = lopsided(4000, seed=1)
    corrected = QuantileRecalibration().fit(known, target)(new)
    error = QuantileCalibrationError()
    assert error(corrected, new_target) < 0.02
    gaussian = replace(corrected, quantiles=None)
    assert error(gaussian, new_target) > 0.05


def test_errors_that_are_all_equal_are_refused():
    rows = plain_prediction(Gaussian(torch.zeros(30), torch.ones(30)), task="regression")
    with pytest.raises(DataError, match="needs errors that differ, got 2 predicted standard"):
        QuantileRecalibration().fit(rows, torch.full((30,), 2.0))


def test_several_outputs_are_refused():
    both = Gaussian(torch.zeros(30, 2), torch.ones(30, 2))
    with pytest.raises(DataError, match="for one output"):
        QuantileRecalibration().fit(plain_prediction(both, task="regression"), torch.ones(30, 2))


def test_an_interval_belongs_to_a_regression():
    with pytest.raises(ModelError, match="belongs to regression"):
        plain_prediction(torch.zeros(3, 2)).interval(0.9)
