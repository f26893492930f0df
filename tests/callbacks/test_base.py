import lightning as L
import pytest
import pytorch_lightning
from pytorch_lightning.demos.boring_classes import BoringModel as OtherBoringModel

from stablelightning.callbacks.base import refuse_other_lightning
from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.errors import ModelError
from tests.callbacks.modules import Plain


def test_a_trainer_of_the_other_package_is_named():
    # It takes any object for a callback, and calls its hooks: the one mix that Lightning lets pass.
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EstimateUncertainty(required=False)],
    )
    with pytest.raises(ModelError, match=r"Trainer of pytorch_lightning; import lightning as L"):
        trainer.test(OtherBoringModel(), verbose=False)


def test_a_module_of_the_other_package_is_named():
    with pytest.raises(ModelError, match=r"BoringModel is a .* of pytorch_lightning"):
        refuse_other_lightning(OtherBoringModel(), name="EstimateUncertainty")


def test_lightning_itself_names_a_module_of_one_in_a_trainer_of_the_other():
    # No callback gets a word in here; if Lightning ever stops checking, our check must move.
    trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[EstimateUncertainty()])
    with pytest.raises(TypeError, match="pytorch_lightning"):
        trainer.test(OtherBoringModel())


def test_modules_of_lightning_pass():
    refuse_other_lightning(Plain(), L.LightningDataModule(), name="EstimateUncertainty")
