"""The running percentile against numpy's, which keeps every number."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.functional.percentile import RunningPercentile

#: The twenty observations of the paper's table I, whose median it estimates as 4.44.
PAPER = [0.02, 0.15, 0.74, 3.39, 0.83, 22.37, 10.15, 15.43, 38.62, 15.92]
PAPER += [34.60, 10.28, 1.47, 0.40, 0.05, 11.39, 0.27, 0.42, 0.09, 11.37]

STREAMS = {
    "normal": lambda r, n: r.normal(size=n),
    "lognormal": lambda r, n: np.exp(2 * r.normal(size=n)),
    "uniform": lambda r, n: r.random(n),
    "exponential": lambda r, n: r.exponential(size=n),
    "rising": lambda r, n: np.arange(n) + r.random(n),
    "falling": lambda r, n: r.random(n) - np.arange(n),
}

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def fed(estimate, stream):
    for number in stream:
        estimate.add(float(number))
    return estimate


def test_the_example_of_the_paper():
    assert fed(RunningPercentile(50), PAPER).value == pytest.approx(4.44, abs=0.005)


@pytest.mark.parametrize("percentile", [5, 50, 90, 99])
@pytest.mark.parametrize("name", STREAMS)
def test_rank_of_the_estimate(name, percentile):
    stream = STREAMS[name](np.random.default_rng(0), 4000)
    value = fed(RunningPercentile(percentile), stream).value
    assert 100 * np.mean(stream < value) == pytest.approx(percentile, abs=1.5)


@given(st.lists(numbers, min_size=1, max_size=5), st.floats(1, 99))
def test_exact_for_up_to_five(stream, percentile):
    value = fed(RunningPercentile(percentile), stream).value
    assert value == pytest.approx(np.percentile(stream, percentile), rel=1e-9, abs=1e-6)


@given(st.lists(numbers, min_size=1), st.floats(1, 99))
def test_stays_between_the_smallest_and_the_largest(stream, percentile):
    value = fed(RunningPercentile(percentile), stream).value
    assert min(stream) <= value <= max(stream)


@given(st.lists(numbers, min_size=1), st.lists(st.sampled_from([math.nan, math.inf, -math.inf])))
def test_what_is_not_finite_leaves_no_trace(stream, poison):
    mixed = [*poison, *(n for number in stream for n in (number, *poison))]
    clean, poisoned = fed(RunningPercentile(90), stream), fed(RunningPercentile(90), mixed)
    assert poisoned.state_dict() == clean.state_dict()


@given(st.lists(numbers, max_size=60), st.lists(numbers, min_size=1, max_size=60))
def test_goes_on_exactly_from_plain_state(first, then):
    unbroken = fed(RunningPercentile(75, window=7), first)
    resumed = RunningPercentile(75, window=7)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    assert fed(resumed, then).value == fed(unbroken, then).value
    assert resumed.state_dict() == unbroken.state_dict()


def test_memory_does_not_grow():
    few, many = (
        fed(RunningPercentile(50, window=50), np.random.default_rng(0).random(n))
        for n in (99, 5_099)
    )
    assert [len(s["heights"]) for s in few.state_dict().values()] == [5, 5]
    assert [len(s["heights"]) for s in many.state_dict().values()] == [5, 5]


def test_a_window_forgets():
    rng = np.random.default_rng(0)
    stream = np.concatenate([100 + rng.random(3000), rng.random(400)])
    assert fed(RunningPercentile(50, window=100), stream).value < 1
    assert fed(RunningPercentile(50), stream).value > 90


def test_nothing_seen_is_no_number():
    assert math.isnan(RunningPercentile(50).value)


@pytest.mark.parametrize("percentile", [0, 100, -5, 101, math.nan, "50", True])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(RecipeError, match=r"must be in \(0, 100\), got"):
        RunningPercentile(percentile)


@pytest.mark.parametrize("window", [0, 4, -1, True])
def test_windows_too_small_are_refused(window):
    with pytest.raises(RecipeError, match="window must be"):
        RunningPercentile(50, window=window)
