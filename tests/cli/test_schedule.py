"""What the doctor and a run say of a schedule."""

import logging
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.optim import lr_scheduler as theirs

from stablelightning.cli.schedule import planned_schedule, schedule_of_run
from stablelightning.cli.sections import Patient
from stablelightning.model import schedules as ours
from stablelightning.model.learning_rate import scale_learning_rates


class Scheduled(BoringModel):
    def __init__(self, make: Any, interval: str = "step") -> None:
        super().__init__()
        self.make, self.interval = make, interval

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)
        if self.make is None:
            return optimizer
        config = {"scheduler": self.make(optimizer), "interval": self.interval, "monitor": "x"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("x", 1.0, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def trained(model: L.LightningModule, **settings: Any) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_train_batches": 5,
        "limit_val_batches": 0,
        "max_epochs": 2,
    }
    trainer = L.Trainer(**{**quiet, **settings})
    trainer.fit(model)
    return trainer


def told(model: L.LightningModule, **settings: Any) -> Any:
    trainer = trained(model, **settings)
    optimizers, schedulers = _init_optimizers_and_lr_schedulers(model)
    return planned_schedule(Patient(trainer, model, None, optimizers[0], schedulers))


def test_without_a_schedule_there_is_nothing_to_say():
    model = Scheduled(None)
    assert told(model) is None
    assert schedule_of_run(trained(model), model) is None


def test_the_doctor_tells_the_plan():
    section = told(Scheduled(partial(ours.ExponentialDecay, total_steps=10)))
    assert section.lead == "ExponentialDecay over 10 steps: from 0.1 down to 0.00158"
    assert section.notes == []


def test_a_schedule_by_epochs_is_walked_by_epochs():
    section = told(Scheduled(partial(theirs.StepLR, step_size=1), interval="epoch"))
    assert section.rows == [["0", 0.1, 0.1, 0, pytest.approx(0.01)]]


def test_a_schedule_of_steps_that_steps_by_epochs_is_told():
    section = told(Scheduled(partial(ours.ExponentialDecay, total_steps=10), interval="epoch"))
    assert "made to step with every step, and steps once an epoch" in section.notes[0]


@pytest.mark.parametrize(("total", "words"), [(7, "must be the 10 steps"), (20, "ends at 50%")])
def test_a_length_that_does_not_fit_is_told(total, words):
    section = told(Scheduled(partial(ours.WarmupCosine, total_steps=total)))
    assert words in section.notes[0]


def test_a_run_tells_where_it_left_the_schedule():
    model = Scheduled(partial(ours.ExponentialDecay, total_steps=10))
    trainer = trained(model)
    assert schedule_of_run(trainer, model).notes == []
    stopped = trained(model, max_epochs=1)
    # As early stopping does: the Trainer would have gone on.
    stopped.fit_loop.max_epochs = 2
    section = schedule_of_run(stopped, model)
    assert "training ended at step 5 of 10" in section.notes[0]
    assert section.numbers["schedule/steps_taken"] == 5


def test_rates_that_the_run_has_scaled_are_told():
    class Scaled(L.Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            scale_learning_rates(trainer.optimizers[0], schedulers, 0.25)

    model = Scheduled(partial(ours.ExponentialDecay, total_steps=10))
    section = schedule_of_run(trained(model, callbacks=[Scaled()]), model)
    assert section.notes == ["the run multiplied these rates by 0.25"]


def test_a_plateau_tells_where_it_ended():
    plateau = partial(ours.ReduceOnPlateau, patience=0, factor=0.5)
    model = Scheduled(plateau, interval="epoch")
    section = schedule_of_run(trained(model, max_epochs=3), model)
    assert "0.1 until x stands still" in section.lead
    assert section.notes == ["it had cut the largest rate to 0.025 when training ended"]


def test_a_plateau_that_cut_nothing_says_so():
    model = Scheduled(partial(ours.ReduceOnPlateau, patience=5, factor=0.5), interval="epoch")
    section = schedule_of_run(trained(model), model)
    assert section.notes == ["it had cut no rate when training ended"]
