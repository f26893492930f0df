import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.recalibrate import (
    central_interval,
    error_moments,
    error_quantiles,
    interpolated,
    level_of_errors,
    quantile_of_errors,
    standardized_errors,
    variance_factor,
)
from stablelightning.functional.scores import gaussian_negative_log_likelihood


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_no_other_factor_makes_the_targets_likelier(seed, true):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(50, generator=generator, dtype=torch.float64)
    variance = 0.1 + torch.rand(50, generator=generator, dtype=torch.float64)
    target = mean + true * variance.sqrt() * torch.randn(50, generator=generator)
    factor = float(variance_factor(mean, variance, target))

    def nll(scale: float) -> float:
        return gaussian_negative_log_likelihood(mean, scale * variance, target).mean().item()

    assert nll(factor) <= min(nll(factor * by) for by in (0.9, 0.99, 1.01, 1.1)) + 1e-12


def test_several_outputs_have_a_factor_each():
    mean, variance = torch.zeros(4, 2), torch.ones(4, 2)
    target = torch.tensor([[2.0, 1.0]] * 4)
    assert variance_factor(mean, variance, target).tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("variance", "target", "said"),
    [
        (torch.zeros(3), torch.ones(3), "variances must be > 0"),
        (torch.ones(3), torch.tensor([1.0, float("nan"), 0.0]), "finite"),
        (torch.ones(3), torch.ones(3, 1), "one shape"),
        (torch.ones(3), torch.zeros(3), "not all be 0"),
    ],
)
def test_what_says_nothing_of_a_variance_is_refused(variance, target, said):
    with pytest.raises(DataError, match=said):
        variance_factor(torch.zeros(3), variance, target)


def test_quantiles_of_many_errors_are_those_of_torch():
    errors = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels, quantiles = error_quantiles(errors)
    assert len(levels) == 201
    at = torch.tensor([0.05, 0.3, 0.5, 0.9], dtype=torch.float64)
    found = quantile_of_errors(at, levels, quantiles)
    torch.testing.assert_close(found, errors.quantile(at), atol=0.02, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_quantiles_grow_with_the_level_far_beyond_the_rows(seed, rows):
    errors = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    levels, quantiles = error_quantiles(errors)
    at = torch.linspace(1e-4, 1 - 1e-4, 999, dtype=torch.float64)
    found = quantile_of_errors(at, levels, quantiles)
    assert (found.diff() >= -1e-12).all()
    assert found[0] < errors.min()
    assert found[-1] > errors.max()


@given(st.integers(0, 50), st.sampled_from([2, 20, 700]))
def test_the_level_of_an_error_is_the_way_back_from_its_quantile(seed, rows):
    errors = torch.randn(rows, generator=torch.Generator().manual_seed(seed)).double().exp()
    levels, quantiles = error_quantiles(errors)
    wanted = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    there = quantile_of_errors(wanted, levels, quantiles)
    torch.testing.assert_close(level_of_errors(there, levels, quantiles), wanted)


def test_gaussian_errors_have_the_moments_and_the_interval_of_a_gaussian():
    levels = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    quantiles = torch.special.ndtri(levels)
    assert error_moments(levels, quantiles) == pytest.approx((0, 1), abs=1e-3)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    plain = central_interval(mean, std, 0.8)
    by_errors = central_interval(
        mean, std, 0.8, quantiles=list(zip(levels.tolist(), quantiles.tolist(), strict=True))
    )
    torch.testing.assert_close(by_errors, plain, atol=1e-4, rtol=0)


def test_interpolation_is_that_of_numpy():
    numpy = pytest.importorskip("numpy")
    x = torch.tensor([0.0, 0.5, 0.5, 2.0], dtype=torch.float64)
    y = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
    at = torch.tensor([-1.0, 0.0, 0.2, 1.0, 2.0, 9.0], dtype=torch.float64)
    expected = numpy.interp(at.numpy(), x.numpy(), y.numpy())
    assert interpolated(at, x, y).tolist() == pytest.approx(expected.tolist())


def test_one_knot_is_a_constant():
    assert interpolated(torch.tensor([0.0, 3.0]), torch.ones(1), torch.ones(1)).tolist() == [1, 1]


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5])
def test_a_level_out_of_its_range_is_refused(level):
    with pytest.raises(RecipeError, match="level must be in"):
        central_interval(torch.zeros(1), torch.ones(1), level)


def test_standardized_errors_are_in_predicted_units():
    errors = standardized_errors(torch.zeros(2), torch.tensor([4.0, 9.0]), torch.tensor([2.0, 3.0]))
    assert errors.tolist() == [1.0, 1.0]
