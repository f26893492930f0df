"""A bad batch leaves nothing behind: the run is that without it, to the bit."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from tests.callbacks.guarded import (
    OPTIMIZERS,
    Guarded,
    batches,
    different,
    fit,
    outcome,
    poisoned,
)

NAN, INF = math.nan, math.inf
undone = pytest.warns(StableLightningWarning, match="GuardTraining undid")


def scaled(**settings: Any) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", **{"init_scale": 16.0, "growth_interval": 4, **settings})
    return MixedPrecision("16-mixed", "cpu", scaler=scaler)


PRECISIONS = {"32": lambda: {}, "16-mixed": lambda: {"plugins": scaled()}}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_with_bad_batches_is_the_run_without_them(optimizer, precision):
    good = batches(7)
    clean = fit(Guarded(good, optimizer), **PRECISIONS[precision]())
    bad = poisoned(good, {0: NAN, 2: INF, 3: -INF, 6: NAN})
    guard = GuardTraining(max_trips=9)
    with undone:
        guarded = fit(Guarded(bad, optimizer), guard, **PRECISIONS[precision]())
    assert guarded.global_step == 14
    assert guard.skipped == 8
    assert different(outcome(clean), outcome(guarded)) == []


def test_the_comparison_sees_an_unguarded_run():
    good = batches(7)
    clean = outcome(fit(Guarded(good)))
    bad = outcome(fit(Guarded(poisoned(good, {2: NAN}))))
    assert set(different(clean, bad)) >= {"weights", "optimizers", "schedules", "metrics", "draw"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw fused"])
def test_without_trouble_nothing_changes(optimizer, accumulated, precision):
    outcomes = []
    for callbacks in ([], [GuardTraining(window=2)]):
        settings = PRECISIONS[precision]() | {"accumulate_grad_batches": accumulated}
        trainer = fit(Guarded(batches(7), optimizer), *callbacks, **settings)
        outcomes.append(outcome(trainer))
    assert different(*outcomes) == []


class BadBackward(Guarded):
    """A finite loss whose gradient is not."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch[0, 0] == 7.0:
            loss = loss + (self.net[0].weight.sum() * 0).sqrt()
        return loss


def test_a_gradient_that_is_not_finite():
    good = batches(6)
    clean = fit(BadBackward(good))
    guard = GuardTraining()
    with undone:
        guarded = fit(BadBackward(poisoned(good, {3: 7.0})), guard)
    assert guard.skipped == 2
    assert guard.events.events[0]["quantity"] == "gradient"
    assert different(outcome(clean), outcome(guarded)) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw fused"])
def test_a_spike_is_skipped_like_the_rest(optimizer, precision):
    good = batches(60)
    clean = fit(Guarded(good, optimizer), max_epochs=1, **PRECISIONS[precision]())
    guard = GuardTraining()
    with undone:
        guarded = fit(
            Guarded(poisoned(good, {50: 3e4}), optimizer),
            guard,
            max_epochs=1,
            **PRECISIONS[precision](),
        )
    assert guard.skipped == 1
    assert guard.events.events[0]["quantity"] == "loss"
    assert different(outcome(clean), outcome(guarded)) == []


def test_an_infinite_threshold_skips_no_spike():
    guard = GuardTraining(INF)
    fit(Guarded(poisoned(batches(60), {50: 3e4})), guard, max_epochs=1)
    assert guard.skipped == 0


# ---- accumulated gradients ----------------------------------------------------------------------


class GivesNothing(Guarded):
    """What dropping a batch means: it adds nothing to the gradients, and leaves nothing behind."""

    def training_step(self, batch, batch_idx):
        if not batch.isfinite().all():
            return sum(p.sum() for p in self.parameters()) * 0.0
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw fused"])
@pytest.mark.parametrize(
    "places", [{0: NAN}, {1: INF}, {2: NAN}, {0: NAN, 1: INF}, {1: NAN, 5: NAN}]
)
def test_only_the_bad_one_of_accumulated_batches_is_dropped(places, optimizer, precision):
    settings = {"accumulate_grad_batches": 3}
    # The last window is short; with the bad ones there are as many batches in both runs.
    data = poisoned(batches(7), places)
    clean = fit(GivesNothing(data, optimizer), **PRECISIONS[precision](), **settings)
    guard = GuardTraining()
    with undone:
        guarded = fit(Guarded(data, optimizer), guard, **PRECISIONS[precision](), **settings)
    assert guard.skipped == 2 * len(places)
    assert {e["decision"] for e in guard.events.events} == {"dropped"}
    assert different(outcome(clean), outcome(guarded)) == []


def test_a_window_of_bad_batches_only_is_no_step():
    good = batches(6)
    data = [*good[:2], torch.full_like(good[0], NAN), torch.full_like(good[0], NAN), *good[2:]]
    clean = fit(Guarded(good), accumulate_grad_batches=2)
    with undone:
        guarded = fit(Guarded(data), GuardTraining(), accumulate_grad_batches=2)
    assert guarded.global_step == 6
    assert different(outcome(clean), outcome(guarded)) == []


# ---- the loss scaler ----------------------------------------------------------------------------


def test_an_overflow_of_the_scaler_is_no_trip():
    settings = {"init_scale": 2.0**126}
    without = fit(Guarded(batches(7)), plugins=scaled(**settings))
    guard = GuardTraining()
    guarded = fit(Guarded(batches(7)), guard, plugins=scaled(**settings))
    assert guarded.precision_plugin.scaler.get_scale() < 2.0**126
    assert guard.skipped == 0
    assert different(outcome(without), outcome(guarded)) == []


def test_gradients_that_no_smaller_scale_can_mend_are_a_trip():
    good = batches(6)
    settings = {"init_scale": 1.0, "growth_interval": 1000}
    clean = fit(BadBackward(good), plugins=scaled(**settings))
    guard = GuardTraining()
    with undone:
        data = poisoned(good, {3: 7.0})
        guarded = fit(BadBackward(data), guard, plugins=scaled(**settings))
    assert guard.skipped == 2
    assert different(outcome(clean), outcome(guarded)) == []


# ---- what users do ------------------------------------------------------------------------------


def test_hooks_of_users_on_the_optimizer_are_called():
    calls = []

    class Hooked(Guarded):
        def configure_optimizers(self):
            given = super().configure_optimizers()
            given[0][0].register_step_pre_hook(lambda *_: calls.append("before"))
            given[0][0].register_step_post_hook(lambda *_: calls.append("after"))
            return given

    with undone:
        fit(Hooked(poisoned(batches(3), {1: NAN})), GuardTraining(), max_epochs=1)
    assert calls == ["before", "after"] * 4


class WarmsUp(Guarded):
    """The usual override of optimizer_step."""

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.001 * (self.trainer.global_step + 1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.001)


def test_an_optimizer_step_of_the_users_own():
    good = batches(6)
    clean = fit(WarmsUp(good))
    with undone:
        guarded = fit(WarmsUp(poisoned(good, {0: NAN, 3: INF})), GuardTraining())
    assert different(outcome(clean), outcome(guarded)) == []


class EverySecond(Guarded):
    """Accumulates by hand in optimizer_step."""

    def optimizer_step(self, epoch, batch_idx, optimizer, closure):
        closure()
        if batch_idx % 2 == 1:
            optimizer.step()


class Plateau(Guarded):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        config = {"scheduler": schedule, "interval": "step", "monitor": "mean"}
        return {"optimizer": optimizer, "lr_scheduler": config}


class ByEpochs(Guarded):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


@pytest.mark.parametrize("kind", [Plateau, ByEpochs])
def test_other_schedules(kind):
    good = batches(6)
    clean = fit(kind(good), max_epochs=3)
    with undone:  # the last batch of an epoch is bad, too
        data = [*poisoned(good, {2: NAN}), torch.full_like(good[0], INF)]
        guarded = fit(kind(data), GuardTraining(max_trips=9), max_epochs=3)
    assert guarded.optimizers[0].param_groups[0]["lr"] < 0.01
    assert different(outcome(clean), outcome(guarded)) == []


class Dicts(Guarded):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "rows": len(batch)}


class Lbfgs(Guarded):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    def loss(self, batch):
        return super().loss(batch) + sum(p.square().sum() for p in self.parameters()) * 0.01


@pytest.mark.parametrize("kind", [Dicts, Lbfgs])
def test_other_outputs_and_optimizers(kind):
    good = batches(6)
    clean = fit(kind(good))
    with undone:
        guarded = fit(kind(poisoned(good, {2: NAN, 4: INF})), GuardTraining())
    assert different(outcome(clean), outcome(guarded)) == []


class TurnsBad(Lbfgs):
    """Finite when a step begins, and not finite at its third evaluation."""

    def __init__(self, *args):
        super().__init__(*args)
        self.evaluations = []

    def loss(self, batch):
        self.evaluations.append(None)
        bad = batch[0, 0] == 7.0 and len(self.evaluations) % 4 == 3
        return super().loss(batch) * (NAN if bad else 1.0)


def test_a_step_that_turns_bad_while_it_searches():
    good = batches(3)
    clean = fit(TurnsBad(good), max_epochs=1)
    guard = GuardTraining()
    with undone:
        guarded = fit(TurnsBad(poisoned(good, {2: 7.0})), guard, max_epochs=1)
    assert guard.skipped == 1
    assert not different(
        {k: v for k, v in outcome(clean).items() if k == "global_step"}, outcome(guarded)
    )


class Counts(torch.optim.SGD):
    """Not of torch's own module: it counts, decays and moves weights even without gradients."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for p in group["params"]:
                p.data.mul_(0.9)
                self.state[p]["calls"] = self.state[p].get("calls", 0) + 1
        return loss


def test_an_optimizer_that_moves_without_gradients():
    class Model(Guarded):
        def configure_optimizers(self):
            return Counts(self.parameters(), lr=0.1)

    good = batches(6)
    clean = fit(Model(good))
    with undone:
        guarded = fit(Model(poisoned(good, {0: NAN, 4: INF})), GuardTraining())
    assert different(outcome(clean), outcome(guarded)) == []


class Carries(Guarded):
    """A recurrent state that goes on from batch to batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.carried = torch.zeros(1)

    def loss(self, batch):
        loss = super().loss(batch) + self.carried.sum()
        self.carried = 0.5 * self.carried + loss.detach().reshape(1)
        return loss


def test_what_is_carried_along_is_not_poisoned():
    good = batches(6)
    clean = fit(Carries(good))
    with undone:
        guarded = fit(Carries(poisoned(good, {2: NAN})), GuardTraining())
    assert torch.equal(clean.lightning_module.carried, guarded.lightning_module.carried)
    assert different(outcome(clean), outcome(guarded)) == []


class DrawsZero(Guarded):
    """The numbers drawn after the tenth call of the generator are at fault, not the batch."""

    _fault = None  # which the guard leaves as it is

    def loss(self, batch):
        state = torch.get_rng_state()
        loss = super().loss(batch)
        if self._fault is None and self.trainer.global_step == 5:
            self._fault = state
        bad = self._fault is not None and torch.equal(self._fault, state)
        return loss * (NAN if bad else 1.0)


def test_draws_that_are_at_fault_are_not_repeated_for_ever():
    guard = GuardTraining(max_trips=8)
    with undone:
        trainer = fit(DrawsZero(batches(20)), guard, max_epochs=1)
    assert 1 < guard.skipped < 6
    assert trainer.global_step == 20 - guard.skipped


def test_a_step_that_gives_no_loss_is_no_trip():
    class Model(Guarded):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    outcomes = []
    for callbacks in ([], [GuardTraining()]):
        outcomes.append(outcome(fit(Model(batches(6)), *callbacks)))
    assert different(*outcomes) == []


def test_a_loss_without_a_graph_is_refused_in_words():
    class Model(Guarded):
        def loss(self, batch):
            return super().loss(batch).detach()

    with pytest.raises(ModelError, match=r"leave out \.detach\(\)"):
        fit(Model(batches(2)), GuardTraining())


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.0},
        {"threshold": -1},
        {"threshold": NAN},
        {"threshold": "high"},
        {"threshold": True},
        {"window": 0},
        {"window": 2.5},
        {"max_trips": 0},
        {"max_rollbacks": -1},
        {"max_rollbacks": True},
        {"cut": 0.0},
        {"cut": 1.5},
        {"cut": NAN},
        {"host_memory": 1},
    ],
    ids=str,
)
def test_settings_out_of_range(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        GuardTraining(**settings)


def test_sharded_models_are_refused():
    from lightning.pytorch.strategies import FSDPStrategy

    class Trainer:
        strategy = object.__new__(FSDPStrategy)
        callbacks = ()
        global_step = 0

    with pytest.raises(RecipeError, match="strategy='ddp'"):
        GuardTraining().setup(Trainer(), L.LightningModule(), "fit")


def test_a_loader_that_gives_nothing_now_and_then():
    class Gaps(Guarded):
        def train_dataloader(self):
            return DataLoader(self.data, batch_size=None, collate_fn=lambda batch: batch)

    bad = torch.full((8, 4), NAN)
    guard = GuardTraining()
    with undone:
        trainer = fit(Gaps([*batches(2), bad, None, None, *batches(2)]), guard, max_epochs=1)
    assert guard.skipped == 1
    assert trainer.global_step == 4
