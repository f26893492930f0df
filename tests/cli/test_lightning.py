"""LightningCLI's own verbs: slots, checkpoints and short names on any model."""

import pytest

from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.cli.checkpoint import KeepBest
from stablelightning.cli.lightning import StableCLI
from stablelightning.cli.slots import SLOTS

MODEL = ("--model=lightning.pytorch.demos.boring_classes.BoringModel",)
BARE = ("--trainer.accelerator=cpu", "--trainer.logger=false")


def kinds(*arguments: str) -> list[type]:
    cli = StableCLI([*MODEL, *BARE, *arguments], run=False)
    return [type(callback) for callback in cli.trainer.callbacks]


def test_an_empty_slot_adds_nothing():
    assert EstimateUncertainty not in kinds()


def test_a_short_class_name_fills_a_slot():
    assert EstimateUncertainty in kinds("--stable.uncertainty=EstimateUncertainty")


def test_the_last_word_on_the_line_counts():
    filled = "--stable.uncertainty=EstimateUncertainty"
    assert EstimateUncertainty not in kinds(filled, "--stable.uncertainty=null")


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.concern)
def test_every_slot_names_a_callback_that_exists(slot):
    assert slot.load().__name__ == slot.callback.rpartition(".")[2]


def test_best_and_last_are_kept_unless_the_reader_keeps_checkpoints():
    assert KeepBest in kinds()
    assert KeepBest not in kinds("--trainer.enable_checkpointing=false")
    own = kinds("--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.filename=mine")
    assert [kind.__name__ for kind in own].count("ModelCheckpoint") == 1
    assert KeepBest not in own


def test_fit_writes_its_config_and_checkpoints_like_lightning(in_process, tmp_path):
    options = ("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false")
    limits = ("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    with pytest.warns(UserWarning, match="logs neither"):
        assert in_process("fit", *MODEL, *BARE, *options, *limits) == 0
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
