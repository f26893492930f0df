"""Schedules against closed forms: what they are at known places, and how they move between."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.functional import schedules as s

shares = st.floats(0.0, 1.0)
STEPS = [n / 1000 for n in range(1001)]


@given(shares, st.floats(0.01, 2.0), st.floats(0.1, 3.0))
def test_power_is_a_hyperbola_to_a_power(progress, halved_at, exponent):
    factor = s.power(progress, halved_at=halved_at, exponent=exponent)
    assert factor == pytest.approx((halved_at / (halved_at + progress)) ** exponent)


@given(shares, st.floats(1e-6, 1.0))
def test_exponential_falls_by_equal_ratios(progress, final):
    factor = s.exponential(progress, final=final)
    assert math.log(factor) == pytest.approx(progress * math.log(final), abs=1e-9)


def test_piecewise_changes_at_the_boundary_itself():
    given_ = {"boundaries": [0.5, 0.75], "factors": [1.0, 0.1, 0.01]}
    seen = [s.piecewise_constant(p, **given_) for p in (0.0, 0.4999, 0.5, 0.7499, 0.75, 1.0)]
    assert seen == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


@given(shares, st.floats(0.0, 0.9), st.floats(0.0, 1.0))
def test_cosine_behind_a_warm_up(progress, warmup, final):
    factor = s.warmup_cosine(progress, warmup=warmup, final=final)
    if progress < warmup:
        assert factor == pytest.approx(progress / warmup)
    else:
        angle = math.pi * (progress - warmup) / (1 - warmup)
        assert factor == pytest.approx(final + (1 - final) * math.cos(angle / 2) ** 2, abs=1e-12)


@given(shares, st.floats(0.0, 0.5), st.floats(0.01, 0.5), st.floats(0.0, 1.0))
def test_stable_between_warm_up_and_decay(progress, warmup, decay, final):
    factor = s.warmup_stable_decay(progress, warmup=warmup, decay=decay, final=final)
    if progress < warmup:
        assert factor == pytest.approx(progress / warmup)
    elif progress <= 1 - decay:
        assert factor == 1.0
    else:
        fallen = math.sqrt((progress - 1 + decay) / decay)
        assert factor == pytest.approx(1 - (1 - final) * fallen, abs=1e-6)


@pytest.mark.parametrize(
    ("curve", "corners"),
    [
        (s.one_cycle, {0.0: 0.04, 0.15: 0.52, 0.3: 1.0, 0.65: 0.5, 1.0: 0.0}),
        (s.one_cycle_three_phase, {0.0: 0.04, 0.15: 0.52, 0.3: 1.0, 0.45: 0.52, 0.6: 0.04, 1: 0.0}),
    ],
)
def test_one_cycle_at_its_corners_and_half_way(curve, corners):
    for progress, factor in corners.items():
        found = curve(progress, peak=0.3, start=0.04, final=0.0)
        assert found == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    "curve",
    [
        lambda p: s.power(p, halved_at=0.1),
        lambda p: s.exponential(p, final=0.01),
        lambda p: s.warmup_cosine(p, warmup=0.0),
        lambda p: s.warmup_stable_decay(p, warmup=0.0, decay=1.0),
    ],
)
def test_decays_begin_at_one_and_never_rise(curve):
    factors = [curve(p) for p in STEPS]
    assert factors[0] == 1.0
    assert all(b <= a for a, b in pairwise(factors))


@pytest.mark.parametrize("curve", [s.one_cycle, s.one_cycle_three_phase])
def test_cycles_are_continuous(curve):
    factors = [curve(p, peak=0.3, start=0.04, final=0.0) for p in STEPS]
    # The steepest half cosine: pi / 2 times its height, over 30% of training.
    steepest = math.pi / 2 / 0.3 / 1000
    assert all(abs(b - a) <= steepest for a, b in pairwise(factors))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "a tenth", True, None])
def test_what_is_no_share_is_refused_by_name(value):
    with pytest.raises(RecipeError, match="warmup must be a number from 0 to 1, got"):
        s.check_share("warmup", value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, "one", True])
def test_what_is_not_positive_is_refused_by_name(value):
    with pytest.raises(RecipeError, match="exponent must be a number > 0, got"):
        s.check_positive("exponent", value)
