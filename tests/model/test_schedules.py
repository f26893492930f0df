"""Schedules as torch schedulers: closed forms, torch's own, groups, state, lengths."""

import io
import math
import pickle
import warnings

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.optim import lr_scheduler as theirs

from stablelightning.errors import RecipeError
from stablelightning.functional import schedules as shapes
from stablelightning.model import schedules as ours
from stablelightning.model.learning_rate import scale_learning_rates
from stablelightning.model.schedule_length import (
    check_length,
    interval_of,
    schedule_config,
    training_of,
)

STEPS = 40
CURVES = [getattr(ours, name) for name in ours.__all__ if name != "ReduceOnPlateau"]


def sgd(*rates: float, **settings) -> torch.optim.SGD:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates or (1.0,)]
    return torch.optim.SGD(groups, lr=0.5, **settings)


def walk(schedule, steps: int = STEPS) -> list[list[float]]:
    """The rates of all groups at each step, from before the first one."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return rates


def first_group(schedule, steps: int = STEPS) -> list[float]:
    return [rates[0] for rates in walk(schedule, steps)]


# ---- against closed forms and against torch -----------------------------------------------------


def test_power_divides_by_one_two_three():
    rates = first_group(ours.PowerDecay(sgd(), total_steps=STEPS, halved_at=0.25))
    assert rates == pytest.approx([1 / (1 + t / 10) for t in range(STEPS)])


def test_exponential_is_torchs_exponential():
    gamma = 0.01 ** (1 / STEPS)
    rates = first_group(ours.ExponentialDecay(sgd(), total_steps=STEPS, final=0.01))
    assert rates == pytest.approx(first_group(theirs.ExponentialLR(sgd(), gamma)))


def test_piecewise_is_torchs_milestones():
    rates = first_group(ours.PiecewiseConstant(sgd(), total_steps=STEPS))
    assert rates == pytest.approx(first_group(theirs.MultiStepLR(sgd(), [20, 30], gamma=0.1)))


def test_warmup_cosine_is_torchs_sequence():
    optimizer = sgd()
    rise = theirs.LinearLR(optimizer, ours.WARMUP_START, total_iters=8)
    fall = theirs.CosineAnnealingLR(optimizer, STEPS - 8)
    expected = first_group(theirs.SequentialLR(optimizer, [rise, fall], [8]))
    rates = first_group(ours.WarmupCosine(sgd(), total_steps=STEPS, warmup=8))
    assert rates == pytest.approx(expected)


def test_warmup_stable_decay_in_closed_form():
    rates = first_group(ours.WarmupStableDecay(sgd(), total_steps=STEPS, warmup=4, decay=16))
    rise = [0.01 + 0.99 * t / 4 for t in range(4)]
    fall = [1 - math.sqrt(t / 16) for t in range(16)]
    assert rates == pytest.approx([*rise, *20 * [1.0], *fall])


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_in_closed_form(three_phase):
    # torch turns at whole steps: 0.3 * 40 - 1 of the 39 that lead to the last.
    curve = shapes.one_cycle_three_phase if three_phase else shapes.one_cycle
    settings = {"peak": 11 / 39, "start": 0.04, "final": 0.04 / 1e4}
    schedule = ours.OneCycle(sgd(), total_steps=STEPS, three_phase=three_phase)
    expected = [curve(t / 39, **settings) for t in range(STEPS)]
    assert first_group(schedule) == pytest.approx(expected)


def test_plateau_cuts_after_its_patience():
    schedule = ours.ReduceOnPlateau(sgd(), patience=2, factor=0.1, min_lr=0.05)
    seen = []
    for loss in (3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        schedule.step(loss)
        seen.append(schedule.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.05])


# ---- what holds for all -------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 10])
def test_every_curve_lasts_as_long_as_training_however_short(curve, total):
    rates = first_group(curve(sgd(), total_steps=total), total)
    assert all(0 <= rate <= 1 and math.isfinite(rate) for rate in rates)


@pytest.mark.parametrize("peak", [0.5, 0.25, 0.2, 0.1])
def test_one_cycle_whose_peak_is_its_second_step_divides_by_nothing(peak):
    rates = first_group(ours.OneCycle(sgd(), total_steps=round(1 / peak), peak=peak), 2)
    assert all(math.isfinite(rate) for rate in rates)


@pytest.mark.parametrize("curve", CURVES)
def test_ratios_between_groups_stay(curve):
    for first, second in walk(curve(sgd(1.0, 0.1), total_steps=STEPS)):
        assert second == pytest.approx(first / 10)


@pytest.mark.parametrize("curve", CURVES)
def test_a_scaled_optimizer_goes_on_at_the_scaled_level(curve):
    plain = first_group(curve(sgd(), total_steps=STEPS))
    schedule = curve(sgd(), total_steps=STEPS)
    before = first_group(schedule, 15)
    scale_learning_rates(schedule.optimizer, [schedule], 0.5)
    after = first_group(schedule, STEPS - 15)
    assert before == plain[:15]
    assert after == pytest.approx([rate / 2 for rate in plain[15:]])


@pytest.mark.parametrize("curve", CURVES)
def test_state_in_the_middle_goes_through_a_weights_only_file(curve):
    schedule = curve(sgd(1.0, 0.1, momentum=0.9), total_steps=STEPS)
    walk(schedule, 17)
    file = io.BytesIO()
    torch.save([schedule.optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    optimizer_state, state = torch.load(file, weights_only=True)
    rest = walk(schedule, STEPS - 17)
    optimizer = sgd(1.0, 0.1, momentum=0.9)
    resumed = curve(optimizer, total_steps=STEPS)
    optimizer.load_state_dict(optimizer_state)
    resumed.load_state_dict(state)
    assert walk(resumed, STEPS - 17) == rest


@pytest.mark.parametrize("curve", CURVES)
def test_a_longer_training_goes_on_along_its_own_curve(curve):
    short, long = curve(sgd(), total_steps=20), curve(sgd(), total_steps=STEPS)
    walk(short, 20)
    long.load_state_dict(short.state_dict())
    reference = first_group(curve(sgd(), total_steps=STEPS))
    long.optimizer.step()
    long.step()
    assert first_group(long, STEPS - 21) == pytest.approx(reference[21:])


@pytest.mark.parametrize("curve", [c for c in CURVES if c is not ours.OneCycle])
def test_what_is_called_at_each_step_can_be_pickled(curve):
    schedule = curve(sgd(), total_steps=STEPS)
    again = pickle.loads(pickle.dumps(schedule.lr_lambdas))
    assert [again[0](t) for t in range(STEPS)] == [schedule.lr_lambdas[0](t) for t in range(STEPS)]


def test_momentum_is_cycled_where_there_is_some():
    assert ours.OneCycle(sgd(momentum=0.9), total_steps=9).cycle_momentum
    assert not ours.OneCycle(sgd(), total_steps=9).cycle_momentum
    adam = torch.optim.Adam([torch.zeros(1)])
    assert ours.OneCycle(adam, total_steps=9).cycle_momentum
    assert adam.param_groups[0]["betas"] == (0.95, 0.999)
    adagrad = torch.optim.Adagrad([torch.zeros(1)])
    assert not ours.OneCycle(adagrad, total_steps=9).cycle_momentum
    with pytest.raises(RecipeError, match="cycle_momentum needs momentum or betas"):
        ours.OneCycle(adagrad, total_steps=9, cycle_momentum=True)


# ---- lengths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES)
def test_the_length_comes_from_training_or_is_asked_for(curve):
    with training_of(lambda: 12):
        assert curve(sgd()).total_steps == 12
        assert curve(sgd(), total_steps=5).total_steps == 5
    with pytest.raises(RecipeError, match="total_steps must be given"):
        curve(sgd())


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("total", [0, -1, 2.5, math.inf, True])
def test_a_length_that_is_none_is_refused(curve, total):
    with pytest.raises(RecipeError, match="total_steps must be a whole number >= 1"):
        curve(sgd(), total_steps=total)


@pytest.mark.parametrize("curve", CURVES)
def test_too_short_is_refused_and_too_long_is_told(curve):
    schedule = curve(sgd(), total_steps=STEPS)
    with pytest.raises(RecipeError, match=f"must be the 80 steps of training, got {STEPS}"):
        check_length(schedule, 80)
    assert "ends at 50% of the schedule" in check_length(schedule, 20)
    assert check_length(schedule, STEPS) is None


@pytest.mark.parametrize(
    ("make", "training", "words"),
    [
        (lambda o: theirs.CosineAnnealingLR(o, 10), 30, "the rate rises again"),
        (lambda o: theirs.CosineAnnealingLR(o, 50), 30, "it never gets there"),
        (lambda o: theirs.MultiStepLR(o, [10, 40]), 30, "milestone at 40 epochs"),
        (lambda o: theirs.StepLR(o, 30), 30, "the rate never changes"),
        (lambda o: theirs.LinearLR(o, total_iters=40), 30, "it never gets there"),
        (lambda o: theirs.PolynomialLR(o, total_iters=40), 30, "it never gets there"),
        (
            lambda o: theirs.ChainedScheduler([theirs.MultiStepLR(o, [40])], o),
            30,
            "milestone at 40 epochs",
        ),
    ],
)
def test_torchs_own_are_looked_at_too(make, training, words):
    assert words in check_length(make(sgd()), training, unit="epoch")


def test_a_part_of_a_sequence_need_not_last_as_long_as_all():
    optimizer = sgd()
    rise = theirs.LinearLR(optimizer, total_iters=5)
    fall = theirs.CosineAnnealingLR(optimizer, 25)
    both = theirs.SequentialLR(optimizer, [rise, fall], [5])
    assert check_length(both, 30, unit="epoch") is None
    assert "rises again" in check_length(both, 60, unit="epoch")


# ---- how often they step ------------------------------------------------------------------------


def test_intervals_are_known():
    optimizer = sgd()
    for curve in CURVES:
        assert interval_of(curve(sgd(), total_steps=9)) == "step"
    assert interval_of(ours.ReduceOnPlateau(optimizer)) == "epoch"
    assert interval_of(theirs.OneCycleLR(optimizer, 0.1, 9, cycle_momentum=False)) == "step"
    assert interval_of(theirs.CosineAnnealingLR(optimizer, 9)) == "epoch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curves = [ours.WarmupCosine(optimizer, total_steps=9), theirs.ConstantLR(optimizer)]
        assert interval_of(theirs.SequentialLR(optimizer, curves, [5])) == "step"


def test_a_plateau_names_what_it_watches():
    plateau = ours.ReduceOnPlateau(sgd(), monitor="val/accuracy", mode="max")
    assert schedule_config(plateau)["monitor"] == "val/accuracy"
    assert schedule_config(ours.ReduceOnPlateau(sgd()), monitor="val/f1")["monitor"] == "val/f1"


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "settings", "words"),
    [
        (ours.PowerDecay, {"halved_at": 0}, "halved_at must be a number > 0"),
        (ours.PowerDecay, {"exponent": -1}, "exponent must be a number > 0"),
        (ours.ExponentialDecay, {"final": 0.0}, "final must be a number > 0"),
        (ours.ExponentialDecay, {"final": 2.0}, "final must be a number from 0 to 1"),
        (ours.PiecewiseConstant, {"boundaries": [0.7, 0.5]}, "boundaries must increase"),
        (ours.PiecewiseConstant, {"boundaries": [50]}, r"boundaries\[0\] must be a number"),
        (ours.PiecewiseConstant, {"factors": [1, 0.1]}, "factors must be 3 numbers >= 0"),
        (ours.WarmupCosine, {"warmup": 1.0}, "warmup must be less than all of training"),
        (ours.WarmupCosine, {"warmup": 40}, "warmup must be shorter than training"),
        (ours.WarmupCosine, {"final": -0.1}, "final must be a number from 0 to 1"),
        (ours.WarmupStableDecay, {"warmup": 0.5, "decay": 0.6}, "no longer than training"),
        (ours.WarmupStableDecay, {"decay": 0}, "decay must be a number > 0"),
        (ours.OneCycle, {"peak": 1.0}, "peak must be below 1"),
        (ours.OneCycle, {"peak": 0.5, "three_phase": True}, "peak must be below 0.5"),
        (ours.OneCycle, {"start": 0.0}, "start must be a number > 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(curve, settings, words):
    with pytest.raises(RecipeError, match=words) as error:
        curve(sgd(), total_steps=STEPS, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factor": 1.0}, "factor must be"),
        ({"patience": -1}, "patience must be"),
        ({"mode": "best"}, "mode must be"),
        ({"min_lr": -1.0}, "min_lr must be"),
    ],
)
def test_a_plateau_out_of_range_is_refused_in_words(settings, words):
    with pytest.raises(RecipeError, match=words):
        ours.ReduceOnPlateau(sgd(), **settings)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (ours.WarmupCosine, "warmup"),
        (ours.WarmupStableDecay, "warmup"),
        (ours.WarmupStableDecay, "decay"),
    ],
)
def test_a_recipe_may_count_in_steps(schedule, name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(schedule, skip={"optimizer"})
    for text, value in (("3", 3), ("0.3", 0.3)):
        read = parser.parse_args([f"--{name}={text}"])[name]
        assert (read, type(read)) == (value, type(value))
