"""Conformal scores by hand and by numpy; the promise of coverage on drawn scores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.conformal import (
    adaptive_scores,
    conformal_quantile,
    conformal_rank,
    least_ambiguous_scores,
    quantile_scores,
    regularized_adaptive_scores,
    scaled_residual_scores,
    uniform_of_rows,
)
from stablelightning.functional.conformal_coverage import coverage_band, coverage_distribution

RESPLITS = 300


def drawn(rows: int, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and targets drawn from other ones: a model that is wrong about itself."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = (0.5 * logits).softmax(1).multinomial(1, generator=generator).squeeze(1)
    return (2 * logits).softmax(1), target


@pytest.mark.parametrize(
    ("rows", "alpha", "rank"),
    [(9, 0.5, 5), (9, 0.3, 7), (10, 0.1, 10), (19, 0.1, 18), (99, 0.05, 95), (100, 0.05, 96)],
)
def test_the_rank_is_that_of_exact_arithmetic(rows: int, alpha: float, rank: int) -> None:
    assert conformal_rank(rows, alpha) == rank


def test_there_is_a_rank_for_an_alpha_as_near_to_one_as_can_be() -> None:
    assert conformal_rank(100, 1 - 1e-9) == 1


@given(st.integers(1, 400), st.integers(1, 999))
def test_the_rank_rounds_up_and_never_leaves_the_rows(rows: int, thousandths: int) -> None:
    if rows * thousandths < 1000:
        with pytest.raises(DataError, match=r"needs .* calibration rows"):
            conformal_rank(rows, thousandths / 1000)
        return
    exact = -(-(rows + 1) * (1000 - thousandths) // 1000)
    assert conformal_rank(rows, thousandths / 1000) == exact <= rows


def test_the_quantile_is_an_order_statistic_of_each_column() -> None:
    scores = torch.stack([torch.randperm(50).double(), torch.randperm(50).double() + 100], 1)
    assert conformal_quantile(scores, 0.1).tolist() == [45.0, 145.0]  # rank 46, counted from 0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, float("nan"), True])
def test_a_share_must_be_one(alpha: float) -> None:
    with pytest.raises(RecipeError, match="alpha must be in"):
        conformal_rank(100, alpha)


def test_too_few_rows_are_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(DataError, match=r"alpha=0\.1 needs 10 calibration rows .* got 9;"):
        conformal_quantile(torch.rand(9), 0.1)
    assert conformal_quantile(torch.arange(10.0), 0.1) == 9


def test_nan_scores_are_refused() -> None:
    scores = torch.rand(40)
    scores[[3, 5]] = float("nan")
    with pytest.raises(DataError, match="got 2 NaN in 40"):
        conformal_quantile(scores, 0.1)


def test_adaptive_scores_add_up_as_numpy_does() -> None:
    probabilities, _ = drawn(30)
    uniform = torch.rand(30, dtype=torch.float64)
    scores = adaptive_scores(probabilities, uniform).numpy()
    for row, share in zip(range(30), uniform.tolist(), strict=True):
        p = probabilities[row].numpy()
        for label in range(5):
            expected = p[p > p[label]].sum() + share * p[label]
            assert scores[row, label] == pytest.approx(expected, abs=1e-12)


def test_without_draws_a_set_is_the_classes_up_to_the_threshold() -> None:
    scores = adaptive_scores(torch.tensor([[0.5, 0.3, 0.2]]))
    assert torch.allclose(scores, torch.tensor([[0.5, 0.8, 1.0]]))


def test_the_price_is_paid_from_the_first_class_that_is_not_free() -> None:
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])
    dearer = regularized_adaptive_scores(probabilities, penalty=0.1, free=1)
    assert torch.allclose(dearer - adaptive_scores(probabilities), torch.tensor([[0.2, 0.0, 0.1]]))
    same = regularized_adaptive_scores(probabilities, penalty=0.1, free=3)
    assert torch.equal(same, adaptive_scores(probabilities))


@pytest.mark.parametrize(("penalty", "free"), [(-0.1, 1), (float("inf"), 1), (0.1, -1), (0.1, 1.5)])
def test_a_price_must_be_one(penalty: float, free: int) -> None:
    with pytest.raises(RecipeError, match="must be a"):
        regularized_adaptive_scores(torch.tensor([[0.5, 0.5]]), penalty=penalty, free=free)


@pytest.mark.parametrize("scores", [least_ambiguous_scores, adaptive_scores])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), "take the softmax of logits"),
        (torch.tensor([[0.5, 0.4]]), "sums from 0.9 to 0.9"),
        (torch.tensor([[float("nan"), 0.4]]), "must be >= 0 and sum to one"),
        (torch.rand(4), r"\(N, C\), got \(4,\)"),
        (torch.rand(4, 1), r"\(N, C\), got \(4, 1\)"),
        (torch.rand(4, 3, 8, 8).softmax(1), r"got \(4, 3, 8, 8\)"),
    ],
)
def test_what_is_no_probability_is_refused(scores, wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scores(wrong)


def test_half_precision_is_scored_in_single() -> None:
    probabilities = torch.rand(20, 10).softmax(1).half()
    assert adaptive_scores(probabilities).dtype == torch.float32
    assert least_ambiguous_scores(probabilities).dtype == torch.float32


def test_numbers_of_rows_are_uniform_and_independent_of_batch_and_seed() -> None:
    rows = torch.arange(20_000)
    first, second = uniform_of_rows(rows).double(), uniform_of_rows(rows, seed=1).double()
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first.numpy(), second.numpy())[0, 1]) < 0.03
    assert abs(np.corrcoef(first.numpy()[:-1], first.numpy()[1:])[0, 1]) < 0.03
    assert torch.equal(uniform_of_rows(rows[500:510]).double(), first[500:510])
    assert float(first.min()) >= 0
    assert float(first.max()) < 1


def test_extreme_row_names_and_seeds_are_taken() -> None:
    rows = torch.tensor([-(2**63), 2**63 - 1, 0, -1])
    for seed in (0, 1, 2**31, 2**62):
        uniform = uniform_of_rows(rows, seed)
        assert len(set(uniform.tolist())) == 4
        assert bool(((uniform >= 0) & (uniform < 1)).all())


def test_regression_scores_against_hand() -> None:
    mean, scale = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0])
    assert scaled_residual_scores(mean, scale, torch.tensor([2.0, -1.0])).tolist() == [2.0, 1.0]
    lower, upper = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    target = torch.tensor([-1.0, 0.4, 1.5])
    assert torch.allclose(quantile_scores(lower, upper, target), torch.tensor([1.0, -0.4, 0.5]))


def test_regression_refuses_zero_scales_and_other_shapes() -> None:
    with pytest.raises(DataError, match="scale must be > 0 in every row, got 0"):
        scaled_residual_scores(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2))
    with pytest.raises(DataError, match="must be > 0"):
        scaled_residual_scores(torch.zeros(1), torch.tensor([float("nan")]), torch.zeros(1))
    with pytest.raises(DataError, match=r"got \(2, 1\), \(2, 1\) and \(2,\)"):
        scaled_residual_scores(torch.zeros(2, 1), torch.ones(2, 1), torch.zeros(2))
    with pytest.raises(DataError, match="lower, upper and target must have the same shape"):
        quantile_scores(torch.zeros(2), torch.ones(2), torch.zeros(2, 1))


# ---- the promise --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "alpha"), [(20, 30, 0.1), (199, 57, 0.05), (50, 1, 0.37)])
def test_the_distribution_of_the_coverage_is_scipys_beta_binomial(
    n: int, m: int, alpha: float
) -> None:
    rank = conformal_rank(n, alpha)
    expected = stats.betabinom(m, rank, n + 1 - rank).pmf(np.arange(m + 1))
    assert np.allclose(coverage_distribution(n, m, alpha).numpy(), expected, atol=1e-12)


def test_the_band_holds_what_it_says_and_no_row_more() -> None:
    n, m, alpha = 40, 60, 0.1
    low, high = coverage_band(n, m, alpha, probability=0.9)
    distribution = coverage_distribution(n, m, alpha)
    below, above = distribution[: round(low * m)].sum(), distribution[round(high * m) + 1 :].sum()
    assert max(below, above) <= 0.05
    assert below + distribution[round(low * m)] > 0.05
    assert above + distribution[round(high * m)] > 0.05
    with pytest.raises(RecipeError, match="probability must be in"):
        coverage_band(n, m, alpha, probability=1.0)
    with pytest.raises(DataError, match="one new row or more"):
        coverage_band(n, 0, alpha)


@pytest.mark.parametrize("n", [20, 150])
@pytest.mark.parametrize("scores", ["least ambiguous", "adaptive", "regularized"])
def test_marginal_coverage_over_resplits_is_beta_binomial(scores: str, n: int) -> None:
    probabilities, target = drawn(400)
    uniform = uniform_of_rows(torch.arange(400))
    of_classes = {
        "least ambiguous": lambda: least_ambiguous_scores(probabilities),
        "adaptive": lambda: adaptive_scores(probabilities, uniform),
        "regularized": lambda: regularized_adaptive_scores(probabilities, uniform, free=1),
    }[scores]()
    _check_coverage(of_classes.gather(1, target[:, None]).squeeze(1), n=n, alpha=0.1)


def test_intervals_of_a_wrong_model_hold_all_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(400, generator=generator, dtype=torch.float64)
    target = x + (0.1 + x) * torch.randn(400, generator=generator, dtype=torch.float64)
    mean, scale = torch.zeros_like(x), 3 - x  # neither is right
    _check_coverage(scaled_residual_scores(mean, scale, target), n=60, alpha=0.2)
    _check_coverage(quantile_scores(mean, mean + 0.1, target), n=60, alpha=0.2)


def _check_coverage(scores: torch.Tensor, *, n: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    m = len(scores) - n
    held = []
    for _ in range(RESPLITS):
        shuffled = scores[torch.randperm(len(scores), generator=generator)]
        held.append(int((shuffled[n:] <= conformal_quantile(shuffled[:n], alpha)).sum()))
    distribution = coverage_distribution(n, m, alpha)
    counts = torch.arange(m + 1, dtype=torch.float64)
    mean = float(counts @ distribution)
    spread = float(((counts - mean).square() @ distribution).sqrt())
    # The resplits are independent draws of the very distribution: its mean, within four errors.
    assert np.mean(held) == pytest.approx(mean, abs=4 * spread / math.sqrt(RESPLITS))
    assert mean / m >= 1 - alpha
    low, high = coverage_band(n, m, alpha, probability=0.95)
    inside = np.mean([low * m - 0.5 <= count <= high * m + 0.5 for count in held])
    expected = float(distribution[round(low * m) : round(high * m) + 1].sum())
    error = math.sqrt(expected * (1 - expected) / RESPLITS)
    assert abs(inside - expected) < 4 * error
