"""Out-of-distribution sets of any data module, and the try before training."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.cli.observe import ObserveUnknown, TrySampling
from stablelightning.errors import NothingRandomError
from tests.callbacks.modules import CLASSES, FEATURES, Plain, loader, quiet_trainer


class Sets(L.LightningDataModule):
    """Its unknown inputs have words for targets, as folders of images have file names."""

    def test_dataloader(self):
        return loader()

    train_dataloader = val_dataloader = test_dataloader

    def ood_dataloaders(self):
        rows = [(torch.randn(FEATURES), f"row {number}") for number in range(10)]
        return {"words": DataLoader(rows, batch_size=4), "nothing": DataLoader([])}


def test_unknown_sets_are_predicted_whatever_their_targets():
    estimate = EstimateUncertainty(samples=5)
    unknown = ObserveUnknown(estimate)
    quiet_trainer(estimate, unknown).test(Plain(), datamodule=Sets(), verbose=False)
    assert list(unknown.rows) == ["words"]
    rows = unknown.rows["words"]
    assert rows["index"].tolist() == list(range(10))
    assert rows["mean"].shape == (10, CLASSES)
    assert "target" not in rows


def test_a_data_module_without_such_sets_is_fine():
    estimate = EstimateUncertainty(samples=5)
    unknown = ObserveUnknown(estimate)
    quiet_trainer(estimate, unknown).test(Plain(), loader(), verbose=False)
    assert unknown.rows == {}


@pytest.mark.parametrize("required", [True, False])
def test_nothing_random_is_told_before_training_where_it_matters(required):
    estimate = EstimateUncertainty(samples=5, required=required)
    trainer = quiet_trainer(TrySampling(estimate), max_epochs=1, num_sanity_val_steps=1)
    model = Plain(rate=0.0)
    if required:
        with pytest.raises(NothingRandomError, match=r"set stable\.uncertainty to null"):
            trainer.fit(model, datamodule=Sets())
        assert trainer.global_step == 0
    else:
        trainer.fit(model, datamodule=Sets())
        assert trainer.global_step > 0
