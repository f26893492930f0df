"""Regressions in the forms in which they come."""

from dataclasses import replace

import pytest
import torch
from torch.nn import Dropout, Linear, ReLU, Sequential

import stablelightning as sl
from stablelightning import metrics
from stablelightning.errors import DataError, RecipeError
from stablelightning.model.prediction import Prediction
from stablelightning.nn.heads import Gaussian, GaussianHead

Y = torch.randn(12)


def sampled(*, keep: bool = True, head: bool = True) -> Prediction:
    last = GaussianHead(16) if head else Sequential(Linear(16, 1), torch.nn.Flatten(0))
    net = Sequential(Linear(3, 16), ReLU(), Dropout(0.3), last)
    return sl.mc_dropout(net, torch.randn(12, 3), samples=9, seed=0, keep_samples=keep)


def test_a_prediction_is_its_mean_and_total_variance() -> None:
    prediction = sampled()
    pair = (prediction.mean, prediction.total)
    for kind in (metrics.GaussianNegativeLogLikelihood, metrics.Sharpness):
        assert torch.equal(kind()(prediction, Y), kind()(pair, Y))
        assert torch.equal(kind()(Gaussian(*pair), Y), kind()(pair, Y))
    assert torch.equal(metrics.Sharpness()(prediction.total), metrics.Sharpness()(prediction))


def test_the_mixture_is_made_of_the_samples_that_were_kept() -> None:
    prediction = sampled()
    means, variances = prediction.samples
    for kind in (metrics.MixtureNegativeLogLikelihood, metrics.QuantileCalibrationError):
        assert torch.equal(kind()(prediction, Y), kind()((means, variances), Y))
    error = metrics.QuantileCalibrationError()
    without = replace(prediction, samples=None)
    assert torch.equal(error(without, Y), error((prediction.mean, prediction.total), Y))


def test_no_samples_and_no_variances_are_two_messages() -> None:
    mixture = metrics.MixtureNegativeLogLikelihood()
    with pytest.raises(DataError, match="keep_samples=True"):
        mixture.update(sampled(keep=False), Y)
    with pytest.raises(DataError, match="got means only"):
        mixture.update(sampled(head=False), Y)
    with pytest.raises(DataError, match=r"a pair \(mean, variance\), got Tensor"):
        mixture.update(torch.randn(12), Y)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="variance must be >= 0"):
        metrics.GaussianNegativeLogLikelihood().update((Y, -Y.abs() - 1), Y)


def test_classes_are_no_regression() -> None:
    zero = torch.zeros(3)
    p = torch.full((3, 2), 0.5)
    prediction = Prediction("classification", p, zero, zero, zero, p, 1, "loop")
    with pytest.raises(DataError, match="a regression is needed, got a Prediction of classific"):
        metrics.Sharpness().update(prediction)


def test_intervals_of_a_prediction() -> None:
    zero, one = torch.zeros(4), torch.ones(4)
    y = torch.tensor([0.0, 0.5, 1.0, 3.0])
    plain = Prediction("regression", zero, one, one, zero, zero, 1, "loop")
    held = Prediction(
        "regression", zero, one, one, zero, zero, 1, "loop", lower=-one, upper=one, level=0.8
    )
    assert metrics.IntervalCoverage()(held, y).item() == 0.75
    assert metrics.IntervalWidth()(held, y).item() == 2
    assert metrics.IntervalScore()(held, y).item() == pytest.approx(2 + 10 * 2 / 4)
    with pytest.raises(DataError, match="got a Prediction without"):
        metrics.IntervalCoverage().update(plain, y)
    with pytest.raises(DataError, match="needs the level"):
        metrics.IntervalScore().update((-one, one), y)


def test_levels_are_checked_when_the_metric_is_made() -> None:
    with pytest.raises(RecipeError, match=r"levels must be in \(0, 1\), got 1.5"):
        metrics.PinballLoss([0.5, 1.5])
    with pytest.raises(RecipeError, match="levels must be numbers"):
        metrics.QuantileCalibrationError([])
    with pytest.raises(RecipeError, match=r"level must be in \(0, 1\)"):
        metrics.IntervalScore(level=1.0)
