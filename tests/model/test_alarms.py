"""Which signals are alarms, how often they are raised, and what is no alarm."""

import math

import pytest

from stablelightning.model.alarms import AlarmRules


def rules():
    return AlarmRules(dead_share=0.4)


def codes(alarms):
    return [(alarm.code, alarm.layer) for alarm in alarms]


@pytest.mark.parametrize(
    ("seen", "raised"),
    [
        ({"dead": 0.4, "died": 0.4, "full_window": 1.0}, True),
        ({"dead": 0.39, "died": 0.39, "full_window": 1.0}, False),
        ({"dead": 0.9, "died": 0.9, "full_window": 0.0}, False),  # too little data to say so
        ({}, False),
    ],
)
def test_dead_units(seen, raised):
    assert bool(rules().judge(0, {"a": seen})) == raised


def test_the_cause_of_death():
    died = rules().judge(0, {"a": {"dead": 0.5, "died": 0.3, "full_window": 1.0}})[0]
    never = rules().judge(0, {"a": {"dead": 0.5, "died": 0.1, "full_window": 1.0}})[0]
    for word in ("learning rate", "warm it up", "leaky"):
        assert word in died.message
        assert word not in never.message
    assert "initialization" in never.message


def test_each_alarm_is_raised_once_per_layer_also_after_a_resume():
    seen = {"dead": 0.5, "died": 0.5, "full_window": 1.0}
    first = rules()
    assert codes(first.judge(0, {"a": seen})) == [("dead-units", "a")]
    second = rules()
    second.load_state_dict(first.state_dict())
    for kept in (first, second):
        assert codes(kept.judge(1, {"a": seen, "b": seen})) == [("dead-units", "b")]


def test_saturation_must_last_and_outputs_may():
    kept = rules()
    seen = {"a": {"saturated": 0.6}, "b": {"saturated": 0.4}, "out": {"saturated": 0.9}}
    found = [codes(kept.judge(step, seen, may_saturate=["out"])) for step in range(4)]
    assert found == [[], [], [("saturated-units", "a")], []]
    kept = rules()
    rising = [0.6, 0.6, 0.4, 0.6, 0.6, 0.6]
    found = [bool(kept.judge(n, {"a": {"saturated": share}})) for n, share in enumerate(rising)]
    assert found == [False] * 5 + [True]


def moved(*distances, ratios=None):
    ratios = ratios or [1e-3 if d else 0.0 for d in distances]
    pairs = zip("abcdefgh", distances, ratios, strict=False)
    return {name: {"distance": d, "update_ratio": r} for name, d, r in pairs}


@pytest.mark.parametrize(
    ("distances", "still"),
    [
        ([0.0, 1.0], ["a"]),
        ([1e-4, 0.5, 0.5], []),  # slow, and on its way: its updates are as large as the others'
        ([0.0] * 3 + [0.5] * 2, ["a", "b", "c"]),  # most of them
        ([0.0, 1e-5, 1e-5], []),  # nothing has moved yet
        ([0.3, 0.1, 0.5], []),
        ([0.0], []),
    ],
)
def test_layers_that_stay_where_they_started(distances, still):
    kept = rules()
    found = [codes(kept.judge(step, moved(*distances))) for step in range(3)]
    assert found[:2] == [[], []]
    assert found[2] == [("layer-not-learning", name) for name in still]


def test_embeddings_may_rest():
    kept = rules()
    assert not any(kept.judge(step, moved(0.0, 1.0), may_rest=["a"]) for step in range(5))


def test_a_gradient_that_is_not_finite_is_said_of_the_last_layer():
    seen = {"a": {"grad_norm": math.nan}, "b": {"grad_norm": math.inf}, "c": {"grad_norm": 1.0}}
    (alarm,) = rules().judge(7, seen)
    assert (alarm.code, alarm.layer, alarm.step) == ("non-finite-gradient", "b", 7)
    assert alarm.evidence == {"layers": 2.0}
