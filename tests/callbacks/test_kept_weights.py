"""The files that a training leaves, and what is added to them."""

from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import stablelightning as sl
from stablelightning.callbacks import Calibrate
from tests.callbacks.calibrated import TooSure
from tests.callbacks.modules import quiet_trainer


class Noted(TooSure):
    """Its state dict holds something that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"note": "kept"}

    def set_extra_state(self, state: Any) -> None:
        assert state["note"] == "kept"


def test_a_state_that_is_no_tensor_keeps_nothing_from_the_checkpoint(tmp_path):
    keeper = ModelCheckpoint(tmp_path, monitor="val_loss", filename="best")
    callbacks = (Calibrate(), sl.EstimateUncertainty(samples=3), keeper)
    trainer = quiet_trainer(*callbacks, max_epochs=1, enable_checkpointing=True)
    trainer.fit(Noted())
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert "calibrator" in state["callbacks"]["Calibrate"]
