"""The threshold that chooses itself, and what is counted of clipped steps."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.model.clip import WINDOW, AutoThreshold, ClipRecord, threshold_from

norms = st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=60)
POISON = (math.nan, math.inf, -math.inf)


@given(norms, st.floats(0.5, 10), st.sampled_from(POISON))
def test_a_multiple_of_the_mean_within_the_bounds(stream, multiple, poison):
    mean = math.fsum(stream) / len(stream)
    found = threshold_from([poison, *stream], multiple=multiple, bounds=(0.5, 50.0))
    assert found == pytest.approx(min(max(multiple * mean, 0.5), 50.0))


def test_nothing_finite_gives_the_upper_bound():
    assert threshold_from([math.nan]) == 5.0


@given(norms, st.integers(1, 20))
def test_the_first_finite_norms_decide(stream, steps):
    threshold = AutoThreshold(steps=steps, bounds=(1e-9, 1e13))
    for norm in stream:
        threshold.add(math.nan)
        before = threshold.is_measuring
        assert threshold.value == (1e13 if before else threshold.chosen)
        threshold.add(norm)
    assert threshold.first == stream[:steps]
    if len(stream) >= steps:
        assert threshold.value == threshold_from(stream[:steps], bounds=(1e-9, 1e13))


@given(norms, norms, st.sampled_from([None, 25.0]))
def test_a_threshold_goes_on_exactly(first, then, percentile):
    unbroken = AutoThreshold(steps=7, percentile=percentile)
    for norm in first:
        unbroken.add(norm)
    resumed = AutoThreshold(steps=7, percentile=percentile)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    for norm in then:
        unbroken.add(norm)
        resumed.add(norm)
        assert resumed.value == unbroken.value
    assert resumed.state_dict() == unbroken.state_dict()


def test_a_followed_percentile_stays_within_the_bounds():
    threshold = AutoThreshold(steps=2, percentile=90)
    for norm in [3.0] * 20 + [0.01] * 4000:
        threshold.add(norm)
    assert threshold.value == 1.0
    for norm in [100.0] * 4000:
        threshold.add(norm)
    assert threshold.value == 5.0


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 99))
def test_the_curve_keeps_the_ends_of_every_stretch(steps, seed):
    stream = [float((seed + 7 * n) % 101) for n in range(steps)]
    record = ClipRecord()
    for norm in stream:
        record.add(norm, 50.0)
    assert len(record.lows) == len(record.highs) == len(record.bounds) <= 512
    assert math.ceil(steps / record.width) == len(record.lows)
    for place, (low, high) in enumerate(zip(record.lows, record.highs, strict=True)):
        stretch = stream[place * record.width : (place + 1) * record.width]
        assert (low, high) == (min(stretch), max(stretch))
    assert (record.steps, record.clipped) == (steps, sum(n > 50 for n in stream))
    assert record.fraction == pytest.approx(
        sum(n > 50 for n in stream[-WINDOW:]) / min(steps, WINDOW)
    )


def test_what_is_not_finite_is_told_apart():
    record = ClipRecord()
    for norm in [1.0, *POISON, 9.0]:
        record.add(norm, 5.0)
    assert (record.steps, record.clipped, record.not_finite) == (5, 1, 3)
    assert record.highs == [1.0, -math.inf, -math.inf, -math.inf, 9.0]


@given(norms, norms)
def test_a_record_goes_on_exactly(first, then):
    unbroken, resumed = ClipRecord(), ClipRecord()
    for norm in first:
        unbroken.add(norm, 3.0)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    for norm in then:
        unbroken.add(norm, 3.0)
        resumed.add(norm, 3.0)
    assert resumed.state_dict() == unbroken.state_dict()


def test_settings_out_of_range_are_refused():
    with pytest.raises(RecipeError, match="steps must be"):
        AutoThreshold(steps=-1)
    with pytest.raises(RecipeError, match="bounds must rise"):
        AutoThreshold(bounds=(2.0, 1.0))
