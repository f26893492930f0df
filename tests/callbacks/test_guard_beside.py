"""The guard beside other callbacks: a step that is undone is none for them either."""

import math
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    ModelCheckpoint,
)

from stablelightning.callbacks import (
    ClipGradientNorm,
    FindLearningRate,
    MonitorSignals,
    PruneGradually,
    RegularizeL1,
)
from stablelightning.callbacks.guard import GuardTraining
from tests.callbacks.guarded import Guarded, batches, different, fit, outcome, poisoned, same
from tests.callbacks.test_guard import undone

NAN, INF = math.nan, math.inf
GOOD = batches(8)
BAD = poisoned(GOOD, {0: NAN, 3: INF, 5: NAN})

OTHERS = {
    "clip": lambda: ClipGradientNorm(0.1),
    "clip by measured norms": lambda: ClipGradientNorm(steps=3, bounds=(0.01, 0.5)),
    "monitor": lambda: MonitorSignals(every_n_steps=2),
    "L1": lambda: RegularizeL1(0.01),
    "average": lambda: EMAWeightAveraging(decay=0.5),
}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_a_run_with_bad_batches_is_the_run_without_them(name, accumulated):
    if accumulated == 2:  # pairs of good ones stay pairs
        data = [*GOOD[:2], torch.full_like(GOOD[0], NAN), torch.full_like(GOOD[0], NAN), *GOOD[2:]]
    else:
        data = BAD
    settings = {"accumulate_grad_batches": accumulated}
    clean = fit(Guarded(GOOD), OTHERS[name](), **settings)
    guard = GuardTraining(max_trips=9)
    with undone:
        guarded = fit(Guarded(data), OTHERS[name](), guard, **settings)
    assert guard.skipped == 2 * (len(data) - len(GOOD))
    assert different(outcome(clean), outcome(guarded)) == []


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_monitor_measures_as_without_the_bad_batches(accumulated):
    data = BAD if accumulated == 1 else [GOOD[0], torch.full_like(GOOD[0], NAN), *GOOD[1:]]
    clean, seen = MonitorSignals(every_n_steps=2), MonitorSignals(every_n_steps=2)
    if accumulated == 1:
        fit(Guarded(GOOD), clean)
    with undone:
        fit(Guarded(data), seen, GuardTraining(max_trips=9), accumulate_grad_batches=accumulated)
    assert len(seen.history.steps) > 5
    rows = torch.as_tensor(seen.history.table("activation_mean"))
    assert rows.isfinite().all()
    if accumulated == 1:
        ours, theirs = clean.state_dict(), seen.state_dict()
        assert ours["steps"] == theirs["steps"] == 16
        assert same(ours["monitor"]["units"], theirs["monitor"]["units"])
        assert same(ours["monitor"]["history"]["rows"], theirs["monitor"]["history"]["rows"])


class ByHand(Guarded):
    """Steps by hand."""

    def __init__(self, data):
        super().__init__(data)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.mark.parametrize("place", [0, 1])
def test_an_average_beside_steps_by_hand_sees_none_that_is_undone(place):
    averages = []
    for data in (GOOD, BAD):
        average = EMAWeightAveraging(decay=0.5)
        callbacks = [average]
        callbacks.insert(place, GuardTraining(max_trips=9))
        with undone if data is BAD else nullcontext():
            trainer = fit(ByHand(data), *callbacks)
        averages.append(dict(average.state_dict()) | dict(trainer.lightning_module.state_dict()))
    assert different(*averages) == []


@pytest.mark.filterwarnings("ignore:GuardTraining went back")
def test_pruned_weights_stay_pruned_and_finite():
    prune = PruneGradually(0.5, start=0.0, end=0.5, every_n_steps=1)
    with undone:
        trainer = fit(Guarded(BAD), prune, GuardTraining(max_trips=2, window=4))
    weight = trainer.lightning_module.net[0].weight
    assert weight.isfinite().all()
    assert (weight == 0).any()


@pytest.mark.filterwarnings("ignore:GuardTraining went back")
def test_an_average_goes_back_with_the_weights():
    average = EMAWeightAveraging(decay=0.9)
    sizes = []

    class Grows(Guarded):
        def training_step(self, batch, batch_idx):
            if batch_idx < 7:
                with torch.no_grad():  # as a rate that is too large does
                    self.net[0].weight.mul_(10.0)
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, *_):
            sizes.append(float(average._average_model.module.net[0].weight.abs().max()))

    bad = [torch.full_like(GOOD[0], NAN)] * 2
    guard = GuardTraining(math.inf, max_trips=2, window=99)
    with undone:
        fit(Grows([*GOOD[:7], *bad, GOOD[7]]), guard, average, max_epochs=1)
    assert guard.rollbacks == 1
    assert sizes[6] > 1e4
    assert sizes[-1] < 1.0


class Unfreezes(Guarded):
    """Trains its head, and in the second epoch all, which diverges."""

    def __init__(self, data):
        super().__init__(data)
        self.backbone = self.net[:4]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.current_epoch == 1 and batch_idx < 3:
            with torch.no_grad():  # as a rate that is too large does
                self.net[0].weight.mul_(1e3)
        return loss * NAN if self.current_epoch == 1 and batch_idx in (3, 4) else loss

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


@pytest.mark.filterwarnings("ignore:GuardTraining went back")
def test_layers_that_were_unfrozen_since_go_back_too():
    model, guard = Unfreezes(GOOD), GuardTraining(math.inf, max_trips=2, window=99)
    before = model.net[0].weight.detach().clone()
    moved = []

    class Looks(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1:
                moved.append(float((pl_module.net[0].weight - before).abs().max()))

    with undone:
        trainer = fit(model, guard, BackboneFinetuning(1), Looks())
    assert guard.rollbacks == 1
    assert moved[2] > 1e6
    assert moved[4] == 0.0
    assert moved[5] > 0.0  # trained on
    assert len(trainer.optimizers[0].param_groups) == 2


class Validates(Guarded):
    """Notes how many weights are zero while it is validated."""

    def __init__(self, data):
        super().__init__(data)
        self.zeros = []

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.zeros.append(int((self.net[0].weight == 0).sum()))

    val_dataloader = Guarded.train_dataloader


@pytest.mark.filterwarnings("ignore:GuardTraining went back")
@pytest.mark.parametrize("averages", [[], [EMAWeightAveraging]], ids=["plain", "average"])
def test_what_is_validated_after_going_back_is_pruned(averages):
    prune = PruneGradually(0.5, start=0.05, end=0.1, every_n_steps=1, per_layer=True)
    model = Validates([*GOOD, *[torch.full_like(GOOD[0], NAN)] * 2])
    guard = GuardTraining(max_trips=2, max_rollbacks=9)
    with undone:
        fit(model, prune, guard, *(kind() for kind in averages), num_sanity_val_steps=0)
    assert guard.rollbacks == 2  # each with the last batch of an epoch
    assert model.zeros == [12, 12]


@pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
def test_a_finder_of_rates_sees_no_guard():
    outcomes = [
        outcome(fit(Guarded(GOOD), FindLearningRate(), *guards))
        for guards in ([], [GuardTraining(window=2)])
    ]
    assert different(*outcomes) == []


def test_checkpoints_hold_what_was_undone(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with undone:
        fit(Guarded(BAD), every, GuardTraining(), max_epochs=1, enable_checkpointing=True)
    kept = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert kept == [f"step={number}.ckpt" for number in range(1, 9)]
    for path in tmp_path.glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in weights.values())
