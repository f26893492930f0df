"""Early stopping: when it stops, which weights are left, and what a checkpoint carries."""

import csv
import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from stablelightning.callbacks import GuardTraining, PruneGradually, StopEarly
from stablelightning.cli.checkpoint import KeepBest
from stablelightning.errors import RecipeError, StableLightningWarning
from tests.callbacks.modules import loader, quiet_trainer
from tests.contracts.models import Seeded, weights

#: The best is the third; after two more the patience of most tests is at its end.
LOSSES = (3.0, 2.0, 1.0, 4.0, 5.0, 0.5)


class Scripted(Seeded):
    """Learns as usual, and logs losses from a list."""

    def __init__(self, losses=LOSSES):
        super().__init__()
        self.losses = losses
        self.by_epoch = []

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.losses[self.current_epoch])
        self.log("val/accuracy", -self.losses[self.current_epoch])

    def on_train_epoch_end(self):
        self.by_epoch.append(weights(self))


def fit(*callbacks, model=None, **settings):
    torch.manual_seed(0)
    model = model or Scripted()
    trainer = quiet_trainer(*callbacks, **{"max_epochs": len(LOSSES), **settings})
    trainer.fit(model)
    return trainer, model


def same(one, other):
    return all(map(torch.equal, one, other))


def test_stops_and_goes_back_to_the_best(caplog):
    stop = StopEarly(patience=2)
    with caplog.at_level(logging.INFO):
        _, model = fit(stop)
    assert len(model.by_epoch) == 5
    assert (stop.best_epoch, stop.best_score) == (2, 1.0)
    assert same(weights(model), model.by_epoch[2])
    assert not same(weights(model), model.by_epoch[4])
    assert "went back to the weights of epoch 2 (val/loss 1)" in caplog.text
    assert "the best of 5 epochs" in caplog.text


def test_buffers_go_back_too():
    _, model = fit(StopEarly(patience=2))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.num_batches_tracked == 3 * 6


def test_goes_back_where_nothing_stops_it():
    stop = StopEarly(patience=50)
    _, model = fit(stop, max_epochs=5)
    assert len(model.by_epoch) == 5
    assert same(weights(model), model.by_epoch[2])


def test_says_nothing_where_the_last_is_the_best(caplog):
    with caplog.at_level(logging.INFO):
        _, model = fit(StopEarly(patience=50))
    assert same(weights(model), model.by_epoch[5])
    assert "went back" not in caplog.text


def test_the_largest_may_be_the_best():
    stop = StopEarly("val/accuracy", mode="max", patience=2)
    _, model = fit(stop)
    assert stop.best_epoch == 2
    assert len(model.by_epoch) == 5


def test_stops_when_lightnings_own_does():
    for patience in (1, 2, 3):
        ours, theirs = Scripted(), Scripted()
        fit(StopEarly(patience=patience, min_delta=1.5), model=ours)
        fit(EarlyStopping("val/loss", patience=patience, min_delta=1.5), model=theirs)
        assert len(ours.by_epoch) == len(theirs.by_epoch)


def test_a_loss_that_is_not_finite_stops():
    model = Scripted([3.0, 2.0, float("nan"), 1.0])
    stop = StopEarly()
    fit(stop, model=model)
    assert len(model.by_epoch) == 3
    assert stop.best_epoch == 1
    assert same(weights(model), model.by_epoch[1])


def test_validations_within_an_epoch_are_checks():
    seen = []

    class Often(Scripted):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", float(abs(len(seen) - 3)))

        def on_validation_end(self):
            if not self.trainer.sanity_checking:
                seen.append(weights(self))

    model = Often()
    stop = StopEarly(patience=3)
    fit(stop, model=model, val_check_interval=2)
    assert len(seen) == 7  # the fourth is the best, three more
    assert stop.best_epoch == 1
    assert same(weights(model), seen[3])


def test_a_rare_validation_is_waited_for():
    stop = StopEarly(patience=1)
    _, model = fit(stop, check_val_every_n_epoch=2)
    assert stop.best_epoch == 1  # validated after epochs 1 and 3
    assert len(model.by_epoch) == 4


# ---- checkpoints --------------------------------------------------------------------------------


def resumed(path, **settings):
    stop = StopEarly(**settings)
    torch.manual_seed(1)
    model = Scripted()
    trainer = quiet_trainer(stop, max_epochs=len(LOSSES))
    trainer.fit(model, ckpt_path=path, weights_only=True)
    return stop, model


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_weights(epoch, tmp_path):
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    stop = StopEarly(patience=2)
    _, unbroken = fit(stop, every, enable_checkpointing=True)
    again, model = resumed(tmp_path / f"epoch={epoch}.ckpt", patience=2)
    assert again.best_epoch == stop.best_epoch == 2
    assert same(weights(model), weights(unbroken))


def test_a_checkpoint_before_a_validation_is_gone_on_from(tmp_path):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    fit(StopEarly(patience=2), every, enable_checkpointing=True)
    stop, model = resumed(tmp_path / "step=6.ckpt", patience=2)
    assert stop.best_epoch == 2
    assert len(model.by_epoch) == 4  # epochs 1 to 4


def test_a_checkpoint_at_the_best_holds_the_weights_once(tmp_path):
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    stop = StopEarly(patience=2)
    _, model = fit(stop, every, enable_checkpointing=True)
    kept = [
        torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["callbacks"][stop.state_key]
        for epoch in range(5)
    ]
    assert [state["weights"] is None for state in kept] == [True, True, True, False, False]
    names = model.state_dict()
    assert same([kept[4]["weights"][name] for name in names], model.by_epoch[2])


def test_beside_the_keeper_of_checkpoints(tmp_path):
    keeper = KeepBest(str(tmp_path))
    last = keeper.last()
    _, model = fit(StopEarly(patience=2), keeper, last, enable_checkpointing=True)
    best = torch.load(keeper.best_model_path, weights_only=True)
    assert same(best["state_dict"].values(), weights(model))
    # The last one goes on where training was, not where it went back to.
    ended = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(ended["state_dict"].values(), model.by_epoch[4])


def test_settings_are_those_of_now(tmp_path):
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(StopEarly(patience=2), every, enable_checkpointing=True)
    stop, _ = resumed(tmp_path / "epoch=3.ckpt", patience=50)
    assert stop.best_epoch == 5


def test_a_second_training_begins_anew():
    stop = StopEarly(patience=2)
    fit(stop)
    _, model = fit(stop, model=Scripted([1.0, 2.0, 3.0, 4.0]), max_epochs=4)
    assert stop.best_epoch == 0
    assert same(weights(model), model.by_epoch[0])


def test_a_second_fit_of_one_trainer_goes_back_to_the_best_of_the_first():
    stop = StopEarly(patience=50)
    trainer, model = fit(stop, model=Scripted([1.0, 2.0, 3.0, 4.0]), max_epochs=2)
    best = model.by_epoch[0]
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model)
    assert len(model.by_epoch) == 4
    assert stop.best_epoch == 0
    assert same(weights(model), best)


@pytest.mark.filterwarnings("ignore::stablelightning.errors.StableLightningWarning")
def test_a_checkpoint_at_the_best_step_may_hold_weights_that_a_guard_brought_back(tmp_path):
    class Breaks(Scripted):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.current_epoch else loss

    class Saves(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "back.ckpt")

    stop, guard = StopEarly(), GuardTraining(window=20, max_trips=2, max_rollbacks=9)
    _, model = fit(stop, guard, Saves(), model=Breaks([1.0, 2.0]), max_epochs=2)
    assert guard.rollbacks
    assert not same(model.by_epoch[0], model.by_epoch[1])
    kept = torch.load(tmp_path / "back.ckpt", weights_only=True)["callbacks"][stop.state_key]
    assert same([kept["weights"][name] for name in model.state_dict()], model.by_epoch[0])


def test_the_best_of_a_dense_model_is_not_that_of_a_sparse_one():
    stop, prune = StopEarly(), PruneGradually(0.5, start=0.5, end=0.9, every_n_steps=1)
    lasts = []

    class Keeps(Scripted):
        def on_train_batch_end(self, *_):
            lasts[:] = weights(self)

    _, model = fit(prune, stop, model=Keeps(), max_epochs=3, check_val_every_n_epoch=2)
    assert prune.is_complete
    assert stop.best_epoch == -1  # the only check was of a denser one
    assert same(weights(model), lasts)


# ---- weight averaging ---------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["stop first", "average first"])
def test_with_an_average_the_averaged_weights_are_the_best(first, tmp_path):
    keeper = KeepBest(str(tmp_path))
    both = [StopEarly(patience=2), EMAWeightAveraging(decay=0.9)]
    trainer, model = fit(*(both if first else both[::-1]), keeper, enable_checkpointing=True)
    best = torch.load(keeper.best_model_path, weights_only=True)
    assert same(best["state_dict"].values(), weights(model))
    assert not same(best["current_model_state"].values(), weights(model))
    trainer.validate(model, verbose=False)
    assert same(best["state_dict"].values(), weights(model))


# ---- what is told -------------------------------------------------------------------------------


def test_the_best_is_logged(tmp_path):
    logger = CSVLogger(str(tmp_path), name="log")
    fit(StopEarly(patience=2), logger=logger)
    logger.save()
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["stop/best_epoch"]]
    assert (float(row["stop/best_epoch"]), float(row["stop/best_score"])) == (2, 1)


class Silent(Seeded):
    def validation_step(self, batch, batch_idx):
        self.log("val_mistake", 1.0)


def test_a_quantity_that_is_not_logged_is_refused_with_what_is():
    with pytest.raises(RecipeError, match=r"'val/loss', which is not logged \(logged: val_mistake"):
        fit(StopEarly(), model=Silent())


def test_a_quantity_that_is_not_logged_is_told_once():
    model = Silent()
    with pytest.warns(StableLightningWarning, match="not stopped") as heard:
        fit(StopEarly(required=False), model=model, max_epochs=3)
    assert len([w for w in heard if "StopEarly" in str(w.message)]) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"patience": 0},
        {"patience": 2.5},
        {"patience": True},
        {"min_delta": -1.0},
        {"min_delta": float("nan")},
        {"mode": "least"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        StopEarly(**settings)


def test_sharded_weights_are_refused_in_words():
    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(RecipeError, match="whole weights"):
        StopEarly().setup(trainer, Scripted(), "fit")


def test_evaluation_alone_checks_nothing():
    stop = StopEarly()
    trainer, model = quiet_trainer(stop), Scripted()
    trainer.validate(model, loader(), verbose=False)
    assert stop.best_epoch == -1


def test_an_exception_leaves_the_weights_where_they_were():
    class Breaks(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                raise RuntimeError("broken on purpose")

    model = Scripted()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(StopEarly(), Breaks(), model=model)
    assert same(weights(model), model.by_epoch[3])
