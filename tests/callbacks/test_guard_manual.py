"""In manual optimization, steps from the bad one on are undone."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.callbacks.guard import GuardTraining
from tests.callbacks.guarded import FEATURES, Guarded, batches, different, fit, outcome, poisoned
from tests.callbacks.test_guard import PRECISIONS, undone

NAN, INF = math.nan, math.inf


class Two(Guarded):
    """Two networks with an optimizer and a schedule each, stepped by hand one after the other."""

    def __init__(self, data, optimizer="adam"):
        super().__init__(data, optimizer)
        self.automatic_optimization = False
        self.critic = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def second_loss(self, batch):
        return F.mse_loss(self.critic(batch), self.net(batch).detach())

    def training_step(self, batch, batch_idx):
        for optimizer, schedule, loss in zip(
            self.optimizers(), self.lr_schedulers(), (self.loss, self.second_loss), strict=True
        ):
            value = loss(batch)
            optimizer.zero_grad()
            self.manual_backward(value)
            optimizer.step()
            schedule.step()
            self.log(loss.__name__, value, on_step=True, on_epoch=True)

    def configure_optimizers(self):
        optimizers = [
            torch.optim.Adam(self.net.parameters(), lr=0.01),
            torch.optim.SGD(self.critic.parameters(), lr=0.05, momentum=0.9),
        ]
        return optimizers, [torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.9) for o in optimizers]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_trouble_nothing_changes(precision):
    outcomes = [
        outcome(fit(Two(batches(6)), *callbacks, **PRECISIONS[precision]()))
        for callbacks in ([], [GuardTraining(window=2)])
    ]
    assert different(*outcomes) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_with_bad_batches_is_the_run_without_them(precision):
    good = batches(6)
    clean = fit(Two(good), **PRECISIONS[precision]())
    guard = GuardTraining(max_trips=9)
    with undone:
        data = poisoned(good, {0: NAN, 3: INF})
        guarded = fit(Two(data), guard, **PRECISIONS[precision]())
    assert guard.skipped == 4
    assert guarded.global_step == 24
    assert different(outcome(clean), outcome(guarded)) == []


class SecondIsBad(Two):
    def second_loss(self, batch):
        return super().second_loss(batch) * (NAN if batch[0, 0] == 7.0 else 1.0)


class SecondIsLeftOut(Two):
    """What undoing the second step of a batch means."""

    def training_step(self, batch, batch_idx):
        if batch[0, 0] != 7.0:
            return super().training_step(batch, batch_idx)
        optimizer, schedule = self.optimizers()[0], self.lr_schedulers()[0]
        value = self.loss(batch)
        optimizer.zero_grad()
        self.manual_backward(value)
        optimizer.step()
        schedule.step()
        return None


def test_steps_before_the_bad_one_stay():
    data = poisoned(batches(6), {3: 7.0})
    guard = GuardTraining()
    with undone:
        guarded = fit(SecondIsBad(data), guard, max_epochs=1)
    clean = fit(SecondIsLeftOut(data), max_epochs=1)
    assert guard.skipped == 1
    assert guarded.global_step == clean.global_step == 13
    same = {"weights", "optimizers", "schedules", "global_step"}
    got, expected = outcome(guarded), outcome(clean)
    assert same.isdisjoint(different({k: expected[k] for k in same}, {k: got[k] for k in same}))


class OverTwoBatches(Guarded):
    """Steps every second batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


def test_gradients_over_several_batches_stay_finite():
    good = batches(8)
    bad = torch.full_like(good[0], NAN)
    guard = GuardTraining()
    with undone:
        guarded = fit(OverTwoBatches([*good[:2], bad, *good[2:]]), guard, max_epochs=1)
    assert guard.skipped == 1
    # The bad one is the first of its window, which then holds the other alone.
    clean = fit(OverTwoBatches([*good[:2], good[0], *good[2:]]), max_epochs=1)
    assert guarded.global_step == clean.global_step == 4
    assert all(value.isfinite().all() for value in guarded.lightning_module.state_dict().values())
    batch_norm = guarded.lightning_module.net[1]
    assert batch_norm.num_batches_tracked == 8


class EverySecond(Guarded):
    """Accumulates by hand in optimizer_step."""

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        if batch_idx % 2:
            optimizer.step(closure=closure)
        else:
            closure()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


def test_accumulation_of_the_users_own():
    good = batches(8)
    bad = torch.full_like(good[0], NAN)
    guard = GuardTraining()
    with undone:
        trainer = fit(EverySecond([*good[:2], bad, *good[2:]]), guard, max_epochs=1)
    assert guard.skipped == 1
    assert all(value.isfinite().all() for value in trainer.lightning_module.state_dict().values())
    assert trainer.lightning_module.net[1].num_batches_tracked == 8
