"""Rates by depth: the two rules, in closed form."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.functional.discriminative import decayed_factors, sliced_rates

groups = st.integers(1, 30)


@given(groups, st.floats(0.01, 1.0))
def test_each_group_learns_slower_than_the_next_by_the_same_factor(count, decay):
    factors = decayed_factors(count, decay)
    assert factors[-1] == 1.0
    for lower, higher in pairwise(factors):
        assert lower / higher == pytest.approx(decay)


def test_the_rule_of_ulmfit():
    assert decayed_factors(4, 1 / 2.6) == pytest.approx([2.6**-3, 2.6**-2, 2.6**-1, 1.0])


@given(groups, st.floats(1e-6, 1.0), st.floats(1.0, 1e3))
def test_a_slice_is_geometric_between_its_ends(count, lowest, ratio):
    rates = sliced_rates(count, lowest, lowest * ratio)
    assert len(rates) == count
    assert rates[-1] == lowest * ratio
    if count > 1:
        assert rates[0] == lowest
        steps = [math.log(b / a) for a, b in pairwise(rates)]
        assert steps == pytest.approx([math.log(ratio) / (count - 1)] * (count - 1), abs=1e-9)


@pytest.mark.parametrize("decay", [0, -0.5, 1.5, math.nan, True, "half", None])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(RecipeError, match="layer_decay"):
        decayed_factors(3, decay)


@pytest.mark.parametrize("ends", [(0, 1), (1e-3, 1e-5), (1, math.inf), (math.nan, 1), (None, 1)])
def test_a_slice_out_of_range_is_refused(ends):
    with pytest.raises(RecipeError, match="rates must be two finite numbers"):
        sliced_rates(3, *ends)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_there_is_at_least_one_group(count):
    with pytest.raises(RecipeError, match="groups must be a whole number >= 1"):
        decayed_factors(count, 0.5)
    with pytest.raises(RecipeError, match="groups must be a whole number >= 1"):
        sliced_rates(count, 0.1, 0.2)
