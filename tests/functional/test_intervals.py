"""Intervals and quantiles against scipy, closed forms, and what makes a score proper."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mean_pinball_loss
from torch import nn

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.intervals import (
    gaussian_probability_below,
    interval_coverage,
    interval_score,
    interval_width,
    mixture_probability_below,
    pinball_loss,
    quantile_calibration_error,
    sharpness,
)


def test_pinball_is_scikit_learns() -> None:
    q, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    levels = (0.1, 0.5, 0.95)
    ours = pinball_loss(q, y, levels).mean(0).tolist()
    theirs = [mean_pinball_loss(y, q[:, k], alpha=level) for k, level in enumerate(levels)]
    assert ours == pytest.approx(theirs)


def test_pinball_is_least_at_the_quantile() -> None:
    y = torch.randn(4001, dtype=torch.float64)
    q = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.LBFGS([q], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = pinball_loss(q.expand(len(y), 2), y, torch.tensor([0.1, 0.9])).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert q.tolist() == pytest.approx(np.quantile(y, [0.1, 0.9]).tolist(), abs=0.02)


def test_the_interval_score_is_two_pinballs() -> None:
    y = torch.randn(30)
    lower, upper = torch.randn(30) - 2, torch.randn(30) + 3
    both = pinball_loss(torch.stack([lower, upper], 1), y, (0.1, 0.9)).sum(1) * 2 / 0.2
    assert torch.allclose(interval_score(lower, upper, y, level=0.8), both, atol=1e-5)


def test_ends_belong_to_the_interval() -> None:
    lower, upper = torch.zeros(3), torch.ones(3)
    assert interval_coverage(lower, upper, torch.tensor([0.0, 1.0, 1.1])).tolist() == [1, 1, 0]
    assert interval_width(lower, upper.half()).dtype == torch.float32


def test_an_interval_may_be_infinite() -> None:
    endless = torch.tensor([torch.inf])
    assert interval_coverage(-endless, endless, torch.zeros(1)).item() == 1
    assert interval_width(-endless, endless).item() == torch.inf
    assert interval_coverage(endless, endless, torch.zeros(1)).item() == 0


def test_probabilities_below_are_scipys() -> None:
    mean, y = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    variance = torch.rand(20, dtype=torch.float64) + 0.1
    expected = stats.norm(mean, variance.sqrt()).cdf(y)
    assert gaussian_probability_below(mean, variance, y).tolist() == pytest.approx(expected)
    means = torch.stack([mean, mean + 1])
    both = expected / 2 + stats.norm(mean + 1, variance.sqrt()).cdf(y) / 2
    assert mixture_probability_below(means, variance, y).tolist() == pytest.approx(both)


def test_right_distributions_are_calibrated_and_narrow_ones_are_not() -> None:
    y = 2 * torch.randn(20_000)
    zero = torch.zeros(20_000)

    def error(variance: float) -> float:
        below = gaussian_probability_below(zero, torch.full_like(y, variance), y)
        return quantile_calibration_error(below).item()

    assert error(4.0) < 0.01
    # Below the p-quantile of N(0, 1) lie Phi(Phi^-1(p) / 2) of N(0, 4).
    levels = np.arange(1, 100) / 100
    expected = np.abs(stats.norm.cdf(stats.norm.ppf(levels) / 2) - levels).mean()
    assert error(1.0) == pytest.approx(expected, abs=0.01)
    assert sharpness(torch.full((3,), 4.0)).item() == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interval_coverage(torch.ones(2), torch.zeros(2), torch.ones(2)), "2 of 2 rows"),
        (lambda: interval_width(torch.ones(2), torch.ones(2, 1)), "same shape"),
        (lambda: interval_width(torch.ones(1), torch.tensor([torch.nan])), "must not be NaN"),
        (lambda: pinball_loss(torch.ones(4, 2), torch.ones(4), (0.5,)), "axis of 1 levels"),
        (lambda: quantile_calibration_error(torch.ones(0)), "at least one row"),
        (lambda: sharpness(torch.tensor([-1.0])), r"variance must be >= 0, got -1; .*\.exp\(\)"),
        (lambda: gaussian_probability_below(torch.ones(2), torch.ones(2), torch.ones(3)), "shape"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_levels_lie_between_zero_and_one() -> None:
    with pytest.raises(RecipeError, match=r"levels must be in \(0, 1\), got 1"):
        pinball_loss(torch.ones(1, 1), torch.ones(1), (1,))
    with pytest.raises(RecipeError, match=r"level must be in \(0, 1\), got 90"):
        interval_score(torch.ones(1), torch.ones(1), torch.ones(1), level=90)
