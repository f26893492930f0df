"""Scores against closed forms, scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.scores import (
    SMALLEST_PROBABILITY,
    SMALLEST_VARIANCE,
    binary_brier_score,
    binary_negative_log_likelihood,
    brier_score,
    gaussian_coverage,
    gaussian_negative_log_likelihood,
    negative_log_likelihood,
)


def random_probabilities(*shape: int, dim: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).softmax(dim)


def test_brier_score_of_certainty_is_zero_or_two() -> None:
    probabilities = torch.eye(3)
    assert brier_score(probabilities, torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    assert brier_score(probabilities, torch.tensor([1, 2, 0])).tolist() == [2, 2, 2]


def test_brier_score_of_the_uniform_distribution() -> None:
    probabilities = torch.full((1, 10), 0.1, dtype=torch.float64)
    assert brier_score(probabilities, torch.tensor([3])).item() == pytest.approx(0.9)


def test_brier_score_keeps_small_differences() -> None:
    probabilities = torch.tensor([[1 - 1e-4, 1e-4]])
    assert brier_score(probabilities, torch.tensor([0])).item() == pytest.approx(2e-8, rel=1e-3)


def test_negative_log_likelihood_agrees_with_scikit_learn() -> None:
    probabilities = random_probabilities(40, 5)
    target = torch.arange(40) % 5
    expected = log_loss(target.numpy(), probabilities.numpy(), labels=range(5))
    ours = negative_log_likelihood(probabilities, target).mean().item()
    assert ours == pytest.approx(expected, rel=1e-12)


def test_a_probability_of_zero_costs_the_floor_and_no_more() -> None:
    worst = negative_log_likelihood(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert worst.item() == pytest.approx(-math.log(SMALLEST_PROBABILITY), rel=1e-6)
    worst = binary_negative_log_likelihood(torch.tensor([[1.0]]), torch.tensor([[0]]))
    assert worst.item() == pytest.approx(-math.log(SMALLEST_PROBABILITY), rel=1e-6)


@pytest.mark.parametrize("score", [brier_score, negative_log_likelihood])
def test_dense_rows_score_as_flat_ones(score) -> None:
    probabilities = random_probabilities(2, 3, 4, 5)
    target = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    dense = score(probabilities, target)
    flat = score(probabilities.movedim(1, -1).reshape(-1, 3), target.reshape(-1))
    assert dense.shape == (2, 4, 5)
    torch.testing.assert_close(dense.reshape(-1), flat)
    torch.testing.assert_close(score(probabilities.movedim(1, -1), target, dim=-1), dense)


@pytest.mark.parametrize("score", [brier_score, negative_log_likelihood])
def test_one_hot_targets_are_refused(score) -> None:
    with pytest.raises(DataError, match="class indices"):
        score(torch.eye(3), torch.eye(3))


def test_binary_scores_are_half_and_the_same_of_two_classes() -> None:
    yes = torch.tensor([0.1, 0.7, 1.0], dtype=torch.float64)
    target = torch.tensor([1, 0, 1])
    both = torch.stack([1 - yes, yes], dim=1)
    torch.testing.assert_close(2 * binary_brier_score(yes, target), brier_score(both, target))
    torch.testing.assert_close(
        binary_negative_log_likelihood(yes, target), negative_log_likelihood(both, target)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_single(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([[0.5, 0.5]], dtype=dtype)
    score = negative_log_likelihood(probabilities, torch.tensor([0]))
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(math.log(2), rel=1e-6)


@given(st.floats(-50, 50), st.floats(1e-3, 1e3), st.floats(-50, 50))
def test_gaussian_likelihood_agrees_with_scipy(mean: float, variance: float, target: float) -> None:
    ours = gaussian_negative_log_likelihood(
        *(torch.tensor([v], dtype=torch.float64) for v in (mean, variance, target))
    )
    expected = -stats.norm.logpdf(target, loc=mean, scale=math.sqrt(variance))
    assert ours.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_variance_of_zero_counts_as_the_floor() -> None:
    one = torch.ones(1)
    at_zero = gaussian_negative_log_likelihood(one, torch.zeros(1), one + 1)
    at_floor = gaussian_negative_log_likelihood(one, torch.full((1,), SMALLEST_VARIANCE), one + 1)
    assert torch.isfinite(at_zero)
    assert torch.equal(at_zero, at_floor)


def test_columns_against_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(4, 1\) and \(4,\)"):
        gaussian_negative_log_likelihood(torch.zeros(4, 1), torch.ones(4, 1), torch.zeros(4))
    with pytest.raises(DataError, match="same shape"):
        binary_brier_score(torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_coverage_of_a_true_gaussian_is_its_level(level: float) -> None:
    # The quantiles of the distribution itself: the share inside is exact up to the grid.
    grid = torch.from_numpy(stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000, loc=3, scale=2))
    mean, variance = torch.full_like(grid, 3.0), torch.full_like(grid, 4.0)
    inside = gaussian_coverage(mean, variance, grid, level=level)
    assert inside.mean().item() == pytest.approx(level, abs=2e-4)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_a_level_outside_the_open_unit_interval_is_refused(level: float) -> None:
    one = torch.ones(1)
    with pytest.raises(RecipeError, match=r"level must be in \(0, 1\)"):
        gaussian_coverage(one, one, one, level=level)
