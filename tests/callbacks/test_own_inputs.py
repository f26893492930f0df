import lightning as L
import pytest
import torch

from stablelightning.callbacks.own_inputs import OwnInputs
from stablelightning.data import DigitsData
from stablelightning.errors import DataError
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from tests.callbacks.modules import Plain, loader, quiet_trainer


class Look(L.Callback):
    def setup(self, trainer, pl_module, stage):
        own = OwnInputs(trainer, pl_module)
        self.name = own.name
        self.train = list(own.train_dataloader())
        self.validation = list(own.val_dataloader())


def look(model: L.LightningModule, *loaders, **settings) -> Look:
    callback = Look()
    quiet_trainer(callback, max_steps=1).fit(model, *loaders, **settings)
    return callback


def test_all_training_inputs_are_there_labelled_or_not():
    data = DigitsData(held_out=(0, 1), labels_per_class=3)
    seen = look(StableModule(MLP(64, 8), task="classification"), datamodule=data)
    rows = torch.cat(seen.train)
    assert seen.name == "DigitsData"
    assert rows.shape == (24 + len(data.unlabelled_part()), 64)
    labelled = torch.stack([row for row, _ in data.part("train")])
    assert all((rows == row).all(1).any() for row in labelled)
    assert sum(len(inputs) for inputs, _ in seen.validation) == len(data.part("val"))


def test_loaders_of_a_run_are_taken_as_they_are():
    seen = look(Plain(), loader(20), loader(9))
    assert [len(batch[0]) for batch in seen.train] == [8, 8, 4]
    assert [len(batch[0]) for batch in seen.validation] == [8, 1]
    assert look(Plain(), loader(20)).validation == []


def test_without_training_data_there_is_nothing_to_learn_from():
    with pytest.raises(DataError, match="training data"):
        OwnInputs(quiet_trainer(), Plain())
