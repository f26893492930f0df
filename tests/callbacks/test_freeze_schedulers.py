"""Unfreezing under every scheduler of torch, unbroken and resumed: rates as they were written."""

import functools

import pytest
import torch

from stablelightning.callbacks.freeze import UnfreezeGradually
from tests.callbacks.freeze_schedules import (
    EPOCHS,
    SCHEDULERS,
    STEPS,
    Scheduled,
    factors_by_name,
    trained,
    weights,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULERS)
#: Halves and quarters: products are exact.
DECAYS = [None, 0.5]
#: Decays, and steps at which runs go on; the first opening is at 6.
RESUMED = [(None, 6), (0.5, 4), (0.5, 8)]
PLATEAU = "ReduceLROnPlateau"

pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step", "ignore:You're resuming from a checkpoint"
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A training with a checkpoint of every step, shared by the tests of it."""

    @functools.cache
    def once(schedule: str, layer_decay: float | None):
        plan = UnfreezeGradually(layer_decay=layer_decay)
        folder = tmp_path_factory.mktemp(schedule)
        model, watch = trained(schedule, plan, keep=folder)
        return plan, folder, weights(model), watch

    return once


@pytest.mark.parametrize("layer_decay", DECAYS)
@every_schedule
def test_rates_are_those_that_are_written_times_the_factor(schedule, layer_decay, unbroken):
    plan, _, _, watch = unbroken(schedule, layer_decay)
    _, plain = trained(schedule)
    factors = factors_by_name(plan)
    assert set(factors.values()) == ({1.0} if layer_decay is None else {0.125, 0.25, 0.5, 1.0})
    expected = {
        step: {name: rate * factors[name] for name, rate in rates.items()}
        for step, rates in plain.rates.items()
    }
    assert watch.rates == expected


@every_schedule
def test_one_group_more_is_open_in_each_epoch(schedule, unbroken):
    plan, _, _, watch = unbroken(schedule, None)
    counts = [len(watch.trained[step]) for step in range(STEPS)]
    heads = [group.parameters for group in plan.found[::-1]]
    wanted = [sum(map(len, heads[: 1 + step * EPOCHS // STEPS])) for step in range(STEPS)]
    assert counts == wanted


@pytest.mark.parametrize(("layer_decay", "step"), RESUMED)
@pytest.mark.parametrize("schedule", sorted(set(SCHEDULERS) - {PLATEAU}))
def test_a_resumed_run_is_the_unbroken_one(schedule, layer_decay, step, unbroken):
    """In the middle of an epoch and at its end, with one group open, at the change, and later."""
    _, folder, wanted, whole = unbroken(schedule, layer_decay)
    plan = UnfreezeGradually(layer_decay=layer_decay)
    model, watch = trained(schedule, plan, resume=folder / f"step={step}.ckpt")
    assert watch.rates == {n: rates for n, rates in whole.rates.items() if n >= step}
    assert watch.trained == {n: names for n, names in whole.trained.items() if n >= step}
    assert all(map(torch.equal, weights(model), wanted))


@pytest.mark.parametrize(("layer_decay", "step"), RESUMED)
def test_a_resumed_plateau_is_that_of_a_resumed_training_without_freezing(
    layer_decay, step, tmp_path, unbroken
):
    """Lightning saves checkpoints before it asks a plateau, so that it is asked once less."""
    trained(PLATEAU, keep=tmp_path)
    _, plain = trained(PLATEAU, resume=tmp_path / f"step={step}.ckpt")
    _, folder, _, whole = unbroken(PLATEAU, layer_decay)
    plan = UnfreezeGradually(layer_decay=layer_decay)
    _, watch = trained(PLATEAU, plan, resume=folder / f"step={step}.ckpt")
    factors = factors_by_name(plan)
    assert watch.rates == {
        n: {name: rate * factors[name] for name, rate in rates.items()}
        for n, rates in plain.rates.items()
    }
    assert watch.trained == {n: names for n, names in whole.trained.items() if n >= step}


def test_slices_are_the_peaks_of_a_schedule():
    plan = UnfreezeGradually(rates=(0.005, 0.5))
    _, watch = trained("CyclicLR", plan)
    highest = {n: max(rates[n] for rates in watch.rates.values()) for n in watch.rates[0]}
    decayed = [name for name, p in Scheduled("CyclicLR").named_parameters() if p.ndim > 1]
    slices = [highest[name] for group in plan.found for name in group.parameters if name in decayed]
    assert slices == pytest.approx([0.005 * 100 ** (n / 3) for n in range(4)])
