"""Spikes among heavy tails: caught always, and healthy values hardly ever taken for one."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.functional.spikes import FEWEST_VALUES, PATIENCE, SpikeDetector

FACTOR = 1e4


def fed(values, **arguments):
    detector = SpikeDetector(**arguments)
    for value in values:
        detector.add(value)
    return detector


def called(values, detector=None):
    """Which of the values were called spikes, all of them added."""
    detector = detector or SpikeDetector()
    said = []
    for value in values:
        said.append(detector.is_spike(value))
        detector.add(value)
    return said


def healthy(number=20_000):
    """Sequences of losses and gradient norms that a healthy training may give."""
    rng = np.random.default_rng(0)
    falling = 2.3 * np.exp(-np.arange(number) / 3000) + 0.05
    noise = np.exp(0.3 * rng.standard_normal(number))
    yield "normal", 2 + 0.2 * rng.standard_normal(number)
    yield "log-normal", np.exp(rng.standard_normal(number))
    yield "Pareto, infinite variance", rng.random(number) ** (-1 / 1.5)
    yield "Pareto, infinite mean", 1 / rng.random(number)
    for share in (0.001, 0.002, 0.005, 0.01, 0.05):
        values = falling * noise
        hard = rng.random(number) < share
        values[hard] *= rng.choice([20, 50, 100], hard.sum())
        yield f"hard batches, {share}", values
    yield "Student's, two degrees, of both signs", rng.standard_t(2, number)
    yield "hinge", np.where(rng.random(number) < 0.9, 0, rng.exponential(1, number))
    yield "a loss that turns negative", 5 - np.arange(number) / 1000 + rng.standard_normal(number)
    others = np.maximum(2.3 * np.exp(-np.arange(number) / 100), 1e-4)
    rare = np.where(rng.random(number) < 0.01, 1.0, others)
    yield "a rare class, the others learned by heart", rare * noise
    yield "grows by e in thirty steps", np.exp(np.arange(number) / 30 % 300) * noise


@pytest.mark.parametrize(
    ("name", "values"), [pytest.param(*case, id=case[0]) for case in healthy()]
)
def test_at_most_one_healthy_value_in_a_thousand_is_called_a_spike(name, values):
    assert np.mean(called(values.tolist())) <= 1e-3


@pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param(*case, id=case[0])
        for case in healthy()
        if not case[0].startswith(("hinge", "a"))
    ],
)
def test_an_error_every_sixty_values_is_caught_each_time(name, values):
    """At ten thousand times the level, and often enough that it could have become usual."""
    detector = SpikeDetector()
    for number, value in enumerate(values.tolist()[:6000]):
        if number % 60 == 59:
            error = FACTOR * float(np.median(np.abs(values[max(0, number - 64) : number])))
            assert detector.is_spike(error), number
            detector.add(error)
        else:
            detector.add(value)


@given(
    st.lists(st.floats(0.5, 2.0), min_size=FEWEST_VALUES, max_size=200),
    st.floats(-250, 250),
    st.floats(FACTOR, 1e40),
)
@settings(deadline=None)
def test_caught_whatever_the_unit_of_the_loss(values, power, factor):
    scaled = [value * 10.0**power for value in values]
    assert fed(scaled).is_spike(10.0**power * 2 * factor)


@given(st.lists(st.floats(-1e6, 1e6), min_size=FEWEST_VALUES, max_size=300))
@settings(deadline=None)
def test_what_is_no_larger_than_what_was_seen_last_is_no_spike(values):
    detector = fed(values)
    recent = values[-FEWEST_VALUES:]
    assert not detector.is_spike(min(recent))
    assert not detector.is_spike(sorted(recent)[len(recent) // 2])


@given(
    st.lists(
        st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, 1e4]),
        max_size=300,
    )
)
@settings(deadline=None)
def test_any_floats_can_be_added_and_asked_of(values):
    called(values)


@given(st.lists(st.floats(-1.0, 3.0), max_size=150), st.lists(st.floats(-1.0, 1e5), max_size=150))
@settings(deadline=None)
def test_goes_on_from_its_state_as_if_never_stopped(before, after):
    unbroken = fed(before, window=40)
    state = json.loads(json.dumps(unbroken.state_dict()))  # plain types
    resumed = SpikeDetector(window=40)
    resumed.load_state_dict(state)
    assert called(after, resumed) == called(after, unbroken)
    assert resumed.state_dict() == unbroken.state_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_neither_a_spike_nor_added(value):
    detector = fed([1.0] * 100)
    before = detector.state_dict()
    assert not detector.is_spike(value)
    detector.add(value)
    assert detector.state_dict() == before


def test_nothing_is_called_before_there_is_enough_to_compare_with():
    assert called([1.0] * (FEWEST_VALUES - 1) + [1e9])[-1] is False
    assert called([1.0] * FEWEST_VALUES + [1e9])[-1] is True


def test_asking_adds_nothing():
    detector = fed([1.0] * 100)
    before = detector.state_dict()
    detector.is_spike(1e9)
    assert detector.state_dict() == before


def test_low_outliers_are_no_spikes():
    detector = fed(np.exp(np.sin(np.arange(200))).tolist())
    assert not detector.is_spike(1e-9)
    assert not detector.is_spike(-1e9)


def test_a_moderate_rise_of_level_is_called_once():
    """Layers are unfrozen, and the gradient is a hundred times as large from then on."""
    rng = np.random.default_rng(0)
    noise = np.exp(0.2 * rng.standard_normal(2000))
    noise[1000:] *= 100
    assert sum(called(noise.tolist())) <= 1


def test_an_enormous_rise_of_level_becomes_usual_and_the_next_error_is_still_caught():
    rng = np.random.default_rng(0)
    noise = np.exp(0.2 * rng.standard_normal(2000))
    noise[1000:] *= 1e5
    detector = SpikeDetector()
    assert sum(called(noise.tolist(), detector)) <= PATIENCE
    for value in noise[1000:].tolist():
        detector.add(value)
    assert detector.is_spike(1e5 * FACTOR)


def test_a_rare_hard_batch_is_called_once_and_known_from_then_on():
    values = [1.0 + 0.1 * math.sin(step) for step in range(900)]
    for place in range(100, 900, 100):
        values[place] = 200.0
    assert sum(called(values)) == 1


def test_what_was_usual_at_the_start_is_no_error_for_ever():
    """Everything but a rare class was learned by heart: its loss is what all had at first."""
    values = np.concatenate([np.geomspace(2.3, 1e-5, 1000), np.full(2000, 1e-5)])
    values[1500::70] = 2.3
    assert sum(called(values.tolist())) <= 2


@pytest.mark.parametrize(("error", "caught"), [(2000.0, 1), (500.0, 10)])
def test_a_factor_below_that_of_an_error_becomes_known(error, caught):
    values = [1.0 + 0.1 * math.sin(step) for step in range(1100)]
    for place in range(100, 1100, 100):
        values[place] = 1000.0
    assert sum(called(values, SpikeDetector(error=error))) == caught


def test_golden_numbers():
    """64 values between 1 and e: the largest excess, 0.5, at a window that is full."""
    values = np.exp(np.linspace(0, 1, 65)).tolist()
    detector = fed(sorted(values, key=lambda v: abs(math.log(v) - 0.5)) * 2, window=32)
    level = detector._level()
    assert math.log(level) == pytest.approx(0.5, abs=0.02)
    largest = detector._largest[0][1]
    assert largest == pytest.approx(0.5, abs=0.02)
    edge = level * math.exp(largest) * 10  # ten times as far above as anything was
    assert not detector.is_spike(edge * 0.99)
    assert detector.is_spike(edge * 1.01)


def test_the_threshold_is_one_of_robust_standard_deviations():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(2000) - 5.0  # a negative loss
    spread = 1.4826 * np.median(np.abs(values[-64:] - np.median(values[-64:])))
    strict = fed(values.tolist(), threshold=1e3)
    assert not strict.is_spike(-5.0 + 900 * spread)
    assert strict.is_spike(-5.0 + 1200 * spread)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 8}, "window must be a whole number >= 32, got 8"),
        ({"window": 100.0}, "window must be"),
        ({"window": True}, "window must be"),
        ({"threshold": 0.0}, "threshold must be > 0"),
        ({"threshold": math.nan}, "threshold must be > 0"),
        ({"error": 9.9}, "error must be a factor >= 10"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(RecipeError, match=message):
        SpikeDetector(**arguments)


def test_an_infinite_threshold_calls_nothing_a_spike():
    assert not fed([1.0, 2.0] * 100, threshold=math.inf).is_spike(1e30)
    assert not fed([1.0] * 100, threshold=math.inf).is_spike(1e30)
