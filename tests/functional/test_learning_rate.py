"""Sweeps with known answers: smoothing, divergence, slope and valley."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.learning_rate import (
    divergence,
    log_spaced_rates,
    longest_valley,
    slope_against_log_rate,
    smoothed_losses,
    valley_rate,
)

curves = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


def sweep(*, falls_at: float, breaks_at: float, noise: float = 0.0) -> tuple[torch.Tensor, ...]:
    """A plain, a slope of two decades around ``falls_at``, and an explosion from ``breaks_at``."""
    rates = log_spaced_rates(1e-7, 10.0, steps=120)
    place = torch.log10(rates / falls_at)
    losses = 2.3 - 1.5 / (1 + torch.exp(-3 * place))
    losses = losses + torch.expm1((torch.log10(rates / breaks_at)).clamp(min=0) * 8)
    return rates, losses + noise * torch.randn(120, dtype=torch.float64)


# ---- rates --------------------------------------------------------------------------------------


def test_rates_grow_by_one_factor():
    rates = log_spaced_rates(1e-7, 10.0, steps=81)
    assert rates[0].item() == pytest.approx(1e-7)
    assert rates[-1].item() == pytest.approx(10.0)
    torch.testing.assert_close(rates[1:] / rates[:-1], torch.full((80,), 10**0.1).double())


@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (1, 1), (2, 1), (1, math.inf), (math.nan, 1)])
def test_rates_that_do_not_rise_are_refused(bounds):
    with pytest.raises(RecipeError, match="rates must rise from lowest > 0"):
        log_spaced_rates(*bounds, steps=3)


def test_one_rate_is_no_sweep():
    with pytest.raises(RecipeError, match="at least 2 steps"):
        log_spaced_rates(0.1, 1.0, steps=1)


# ---- smoothing ----------------------------------------------------------------------------------


@given(st.floats(-100, 100), st.floats(0, 0.99), st.integers(1, 30))
def test_a_constant_is_smoothed_to_itself(value, smoothing, n):
    smooth = smoothed_losses(torch.full((n,), value, dtype=torch.float64), smoothing=smoothing)
    torch.testing.assert_close(smooth, torch.full((n,), value, dtype=torch.float64))


def test_the_second_value_has_the_weights_of_the_corrected_average():
    smooth = smoothed_losses(torch.tensor([1.0, 4.0]), smoothing=0.9)
    assert smooth[1].item() == pytest.approx((0.09 * 1 + 0.1 * 4) / 0.19)


@given(curves, st.integers(0, 11), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_not_finite_is_as_if_it_had_not_been(losses, place, poison):
    place = min(place, len(losses))
    poisoned = smoothed_losses(torch.tensor([*losses[:place], poison, *losses[place:]]))
    clean = smoothed_losses(torch.tensor(losses))
    rest = torch.cat([poisoned[:place], poisoned[place + 1 :]])
    torch.testing.assert_close(rest, clean)


def test_before_the_first_finite_loss_there_is_no_mean():
    assert smoothed_losses(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_must_be_a_share(smoothing):
    with pytest.raises(RecipeError, match="smoothing must be in"):
        smoothed_losses(torch.ones(2), smoothing=smoothing)


# ---- divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence(poison):
    losses = torch.tensor([1.0, 0.9, 0.8, poison, 0.5])
    assert divergence(losses, losses[:2]) == 3


def test_an_explosion_is_seen_shortly_after_it_begins():
    rates, losses = sweep(falls_at=1e-3, breaks_at=0.1, noise=0.02)
    place = divergence(losses, losses[:10])
    assert 0.1 < rates[place].item() < 1.0


@given(st.floats(-100, 100), st.floats(1e-3, 1e3))
@settings(max_examples=25)
def test_neither_unit_nor_zero_of_the_loss_matters(shift, unit):
    torch.manual_seed(0)
    _, losses = sweep(falls_at=1e-3, breaks_at=0.1, noise=0.02)
    other = shift + unit * losses
    assert divergence(other, other[:10]) == divergence(losses, losses[:10])


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_divergence(seed):
    torch.manual_seed(seed)
    losses = 2.3 + 0.3 * torch.randn(100)
    assert divergence(losses, losses[:10]) is None


def test_a_rise_to_where_it_began_is_no_divergence():
    fell_and_rose = torch.cat([torch.linspace(2, 1, 50), torch.linspace(1, 2.5, 50)])
    assert divergence(fell_and_rose, torch.tensor([2.0])) is None


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_losses_are_no_divergence_from_themselves(losses):
    assert divergence(torch.tensor(losses), torch.tensor(losses)) is None


def test_nothing_is_known_of_an_untrained_model_without_a_finite_loss():
    assert divergence(torch.tensor([1.0, 9.0]), torch.tensor([math.nan])) is None


# ---- slope --------------------------------------------------------------------------------------


def test_a_loss_that_falls_by_one_a_decade_has_slope_minus_one():
    rates = log_spaced_rates(1e-6, 1.0, steps=25)
    slope = slope_against_log_rate(rates, 5.0 - torch.log10(rates))
    torch.testing.assert_close(slope, -torch.ones(25, dtype=torch.float64))


def test_the_steepest_place_is_in_the_middle_of_the_slope():
    rates, losses = sweep(falls_at=1e-3, breaks_at=100.0)
    assert rates[slope_against_log_rate(rates, losses).argmin()].item() == pytest.approx(
        1e-3, rel=0.2
    )


@pytest.mark.parametrize(
    ("rates", "losses"), [([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0])]
)
def test_a_slope_needs_rates_that_rise(rates, losses):
    with pytest.raises(DataError, match="at least two rates that rise"):
        slope_against_log_rate(torch.tensor(rates), torch.tensor(losses))


# ---- valley -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_no_falling_sequence_is_longer(losses):
    """Against all subsequences."""
    from stablelightning.functional.learning_rate import _longest_fall

    found = _longest_fall([float(v) for v in losses])
    values = [losses[i] for i in found]
    assert found == sorted(set(found))
    assert all(a > b for a, b in pairwise(values))
    longest = max(
        n
        for n in range(1, len(losses) + 1)
        if any(all(a > b for a, b in pairwise(c)) for c in combinations(losses, n))
    )
    assert len(found) == longest


def test_small_rises_do_not_end_a_valley():
    losses = torch.tensor([9.0, 8.0, 8.1, 7.0, 6.0, 6.2, 5.0, 3.0, 1.0, 4.0])
    assert longest_valley(losses) == (2, 8)


def test_a_rising_curve_has_no_valley():
    assert longest_valley(torch.tensor([1.0, 2.0, 3.0])) is None
    assert longest_valley(torch.tensor([1.0, 1.0, 1.0])) is None
    assert longest_valley(torch.tensor([math.nan, 1.0, math.nan])) is None


def test_a_curve_with_holes_has_the_valley_of_the_rest():
    nan = math.nan
    assert longest_valley(torch.tensor([5.0, nan, 4.0, nan, 3.0, 2.0, 9.0])) == (0, 5)


@pytest.mark.parametrize("falls_at", [1e-5, 1e-3, 1e-2])
def test_the_suggestion_lies_on_the_slope(falls_at):
    rates, losses = sweep(falls_at=falls_at, breaks_at=30 * falls_at, noise=0.01)
    end = divergence(losses, losses[:10])
    rate = valley_rate(rates[:end], smoothed_losses(losses[:end]))
    assert falls_at < rate < 30 * falls_at


def test_a_longer_plain_moves_the_suggestion_little():
    rates, losses = sweep(falls_at=1e-2, breaks_at=1.0)
    suggestions = [valley_rate(rates[start:80], losses[start:80]) for start in (0, 20, 40)]
    assert max(suggestions) < 1.05 * min(suggestions)


def test_two_thirds_into_the_valley():
    rates = log_spaced_rates(1e-4, 1e-1, steps=4)
    assert valley_rate(rates, torch.tensor([4.0, 3.0, 2.0, 1.0])) == pytest.approx(1e-2)


def test_no_valley_no_suggestion():
    assert valley_rate(log_spaced_rates(0.1, 1.0, steps=3), torch.tensor([1.0, 2.0, 3.0])) is None
