"""Thresholds against brute force, the bound and the promise against what they say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.abstain import (
    FEWEST_ROWS,
    binomial_upper_bound,
    operating_point_at_coverage,
    operating_point_at_risk,
    operating_point_with_guarantee,
    reasons_to_abstain,
)

scipy_stats = pytest.importorskip("scipy.stats")


@st.composite
def rows(draw, least=12, most=60):
    number = draw(st.integers(least, most))
    # Few different values: ties are the difficult case.
    score = draw(st.lists(st.integers(0, 15), min_size=number, max_size=number))
    wrong = draw(st.lists(st.integers(0, 1), min_size=number, max_size=number))
    return torch.tensor(score) / 16, torch.tensor(wrong).float()


def brute_force(score, loss):
    """Every threshold with the rows that it answers, and their mean loss."""
    for threshold in sorted(set(score.tolist())):
        answered = score <= threshold
        yield threshold, answered.float().mean().item(), loss[answered].mean().item()


@given(rows(), st.floats(0.01, 1))
@settings(deadline=None)
def test_coverage_is_reached_with_the_smallest_threshold_that_does(pair, coverage):
    score, wrong = pair
    point = operating_point_at_coverage(score, wrong, coverage=coverage)
    least = next(t for t in brute_force(score, wrong) if t[1] >= coverage - 1e-6)
    assert (point.threshold, point.coverage, point.risk) == pytest.approx(least)


@given(rows(), st.floats(0.05, 1))
@settings(deadline=None)
def test_risk_is_held_with_the_largest_threshold_that_does(pair, risk):
    score, wrong = pair
    fewest = max(FEWEST_ROWS, math.ceil(1 / risk - 1e-6))
    fine = [
        t
        for t in brute_force(score, wrong)
        if t[2] <= risk * (1 + 1e-6) and round(t[1] * len(score)) >= fewest
    ]
    if not fine:
        with pytest.raises(RecipeError, match="risk must be one that a threshold reaches"):
            operating_point_at_risk(score, wrong, risk=risk)
        return
    point = operating_point_at_risk(score, wrong, risk=risk)
    assert (point.threshold, point.coverage, point.risk) == pytest.approx(fine[-1])


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.floats(0.5, 0.999),
)
@settings(deadline=None)
def test_the_bound_is_that_of_the_beta_distribution(counts, confidence):
    errors, trials = counts
    ours = binomial_upper_bound(
        torch.tensor([errors]), torch.tensor([trials]), confidence=confidence
    )
    exact = scipy_stats.beta.ppf(confidence, errors + 1, trials - errors) if errors < trials else 1
    assert ours.item() == pytest.approx(exact, rel=1e-6)


def test_the_rule_of_three():
    # No error in n trials: about 3 / n with confidence 0.95.
    assert binomial_upper_bound(
        torch.tensor(0), torch.tensor(300), confidence=0.95
    ).item() == pytest.approx(1 - 0.05 ** (1 / 300))


@pytest.mark.parametrize("steepness", [2.0, 6.0])
def test_a_promise_is_broken_no_more_often_than_it_says(steepness):
    # A row of uncertainty u is wrong with probability u ** steepness, u uniform: the true risk of
    # answering up to t is t ** steepness / (steepness + 1).
    generator, broken, plain_broken, draws, kept = np.random.default_rng(0), 0, 0, 200, 0
    for _ in range(draws):
        u = generator.random(1000)
        wrong = torch.tensor(generator.random(1000) < u**steepness).float()
        point = operating_point_with_guarantee(torch.tensor(u), wrong, risk=0.1, confidence=0.8)
        plain = operating_point_at_risk(torch.tensor(u), wrong, risk=0.1)
        broken += point.threshold**steepness / (steepness + 1) > 0.1
        plain_broken += plain.threshold**steepness / (steepness + 1) > 0.1
        kept += point.coverage
        assert point.bound <= 0.1
    assert broken <= 0.2 * draws
    assert kept / draws > 0.4  # it is no promise to answer nothing
    assert plain_broken > 0.3 * draws  # which is what the promise is for


def test_more_rows_leave_more_answers_under_the_same_promise():
    generator = np.random.default_rng(0)
    coverage = []
    for rows_ in (500, 2000, 20000):
        u = generator.random(rows_)
        wrong = torch.tensor(generator.random(rows_) < u**3).float()
        point = operating_point_with_guarantee(torch.tensor(u), wrong, risk=0.1, confidence=0.95)
        coverage.append(point.coverage)
    assert coverage == sorted(coverage)
    assert coverage[0] < coverage[-1] <= 0.4 ** (1 / 3) + 0.02


def test_rows_of_infinite_uncertainty_are_never_answered():
    score = torch.arange(40.0)
    score[30:] = math.inf
    wrong = torch.zeros(40)
    assert operating_point_at_risk(score, wrong, risk=0.1).coverage == 0.75
    assert operating_point_with_guarantee(score, wrong, risk=0.3, confidence=0.9).threshold == 29
    with pytest.raises(RecipeError, match=r"got 0.8 where at most 0.75 of the 40 rows"):
        operating_point_at_coverage(score, wrong, coverage=0.8)


def test_each_reason_says_what_would_have_to_be_different():
    aleatoric = torch.tensor([0.1, 0.7, 0.1, 0.4, 0.7])
    epistemic = torch.tensor([0.1, 0.1, 0.9, 0.3, 0.9])
    why = reasons_to_abstain(aleatoric + epistemic, aleatoric, epistemic, largest=0.6, familiar=0.8)
    assert why.tolist() == [0, 1, 3, 2, 3]
    assert why.dtype == torch.int64


def test_an_answer_on_either_threshold_is_given():
    one = torch.tensor([0.5])
    assert reasons_to_abstain(one, one / 2, one / 2, largest=0.5, familiar=0.25).tolist() == [0]


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        ({"coverage": 0}, RecipeError, r"coverage must be in \(0, 1\], got 0"),
        ({"coverage": 1.5}, RecipeError, r"coverage must be in \(0, 1\], got 1.5"),
    ],
)
def test_a_coverage_out_of_range_is_refused(ask, error, says):
    with pytest.raises(error, match=says):
        operating_point_at_coverage(torch.rand(20), torch.zeros(20), **ask)


@pytest.mark.parametrize("risk", [0, -0.1, math.nan])
def test_a_risk_that_is_not_positive_is_refused(risk):
    with pytest.raises(RecipeError, match="risk must be > 0"):
        operating_point_at_risk(torch.rand(20), torch.zeros(20), risk=risk)


def test_the_best_that_can_be_had_is_said():
    score, wrong = torch.arange(100) / 100, torch.zeros(100)
    wrong[::5] = 1  # as often wrong as not, wherever one looks
    with pytest.raises(RecipeError, match=r"got 0.02, and the best of 100 rows is 0.2,") as told:
        operating_point_at_risk(score, wrong, risk=0.02)
    assert "\n" not in str(told.value)
    with pytest.raises(RecipeError, match=r"got 0.1 with confidence 0.95, and the best of 100"):
        operating_point_with_guarantee(score, wrong, risk=0.1, confidence=0.95)


def test_too_few_rows_to_see_a_risk_are_refused():
    with pytest.raises(RecipeError, match=r"takes at least 100 rows to see where 50 are given"):
        operating_point_at_risk(torch.rand(50), torch.zeros(50), risk=0.01)


@pytest.mark.parametrize(
    ("score", "loss", "says"),
    [
        (torch.tensor([0.1, math.nan]), torch.zeros(2), "must not be NaN, got 1 such rows of 2"),
        (torch.rand(2), torch.tensor([math.nan, math.nan]), "got 2 such rows of 2"),
        (torch.rand(2), torch.zeros(3), "one number for each row"),
        (torch.rand(2, 2), torch.zeros(2, 2), "one number for each row"),
        (torch.rand(0), torch.zeros(0), "at least one"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(score, loss, says):
    with pytest.raises(DataError, match=says):
        operating_point_at_coverage(score, loss, coverage=0.5)


def test_a_promise_needs_right_or_wrong():
    with pytest.raises(DataError, match="losses of 0 and 1"):
        operating_point_with_guarantee(torch.rand(30), torch.rand(30), risk=0.1, confidence=0.9)


@pytest.mark.parametrize("confidence", [0.3, 0.6, 0.99])
def test_the_bound_of_many_trials_is_that_of_scipy(confidence: float) -> None:
    """Only the errors near those seen are summed, or a million rows would take minutes."""
    errors, trials = torch.tensor([0, 60, 2500, 4999]), torch.tensor([5000, 5000, 5000, 5000])
    ours = binomial_upper_bound(errors, trials, confidence=confidence)
    exact = scipy_stats.beta.ppf(confidence, errors + 1, trials - errors)
    torch.testing.assert_close(ours, torch.as_tensor(exact), rtol=0, atol=1e-10)
