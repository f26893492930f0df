"""What is kept of a training: the best state and the last one."""

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from stablelightning.cli.checkpoint import KeepBest


class Worsens(BoringModel):
    """Validation gets worse from the second epoch on."""

    def __init__(self, name: str | None):
        super().__init__()
        self.name = name

    def validation_step(self, batch, batch_idx):
        if self.name is not None:
            self.log(self.name, float(abs(self.current_epoch - 1)))


def epochs(tmp_path, callback: KeepBest, name: str | None, **settings) -> dict[str, int]:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, callback.last()],
        **settings,
    )
    trainer.fit(Worsens(name))
    return {
        path.name: torch.load(path, weights_only=True)["epoch"]
        for path in sorted(tmp_path.glob("*.ckpt"))
    }


@pytest.mark.parametrize("name", ["val/loss", "val_loss"])
def test_best_is_the_epoch_of_the_smallest_loss_and_last_the_last(tmp_path, name):
    assert epochs(tmp_path, KeepBest(str(tmp_path)), name) == {"best.ckpt": 1, "last.ckpt": 2}


def test_largest_where_more_is_better(tmp_path):
    callback = KeepBest(str(tmp_path), monitor="val/accuracy", mode="max")
    assert epochs(tmp_path, callback, "val/accuracy")["best.ckpt"] == 0


def test_without_a_loss_the_latest_is_kept_and_said(tmp_path):
    with pytest.warns(UserWarning, match="logs neither"):
        assert epochs(tmp_path, KeepBest(str(tmp_path)), None)["best.ckpt"] == 2


@pytest.mark.filterwarnings("error:.*logs neither")
def test_an_epoch_without_validation_settles_nothing(tmp_path):
    every_second = {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    callback = KeepBest(str(tmp_path))
    assert epochs(tmp_path, callback, "val/loss", **every_second) == {
        "best.ckpt": 1,
        "last.ckpt": 2,
    }
    assert callback.monitor == "val/loss"


def test_state_is_found_again_on_resume_whatever_was_settled_on(tmp_path):
    trained = KeepBest(str(tmp_path))
    epochs(tmp_path, trained, "val_loss")
    assert trained.monitor == "val_loss"
    assert trained.state_key == KeepBest(str(tmp_path)).state_key
