"""Counting steps outside of a training, too: what depends on it is in test_optimization."""

import math

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from stablelightning.callbacks.training_length import training_epochs, training_steps


def trainer(**settings) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_train_batches": 5,
        "limit_val_batches": 0,
        "limit_test_batches": 1,
    }
    return L.Trainer(**{**quiet, **settings})


def test_after_training_and_testing_no_loader_is_made():
    # A report is written by one process, and making loaders is for all of them together.
    run, model = trainer(max_epochs=2), BoringModel()
    run.fit(model)
    run.test(model, verbose=False)
    assert run.train_dataloader is None
    assert training_steps(run) == 10
    assert run.train_dataloader is None


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"max_epochs": 3}, 3),
        ({"max_epochs": -1}, math.inf),
        ({"max_steps": 9}, math.inf),
        ({"max_epochs": 3, "max_steps": 9}, 3),
        ({}, 1000),  # what Lightning takes
    ],
)
def test_epochs_are_known_before_training_begins(settings, epochs):
    assert training_epochs(trainer(**settings)) == epochs
