"""What is fitted after training: to which weights, on which rows, and where it is kept."""

import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import stablelightning as sl
from stablelightning.calibration import TemperatureScaling
from stablelightning.callbacks import Calibrate
from stablelightning.callbacks.fitted import FittedAfterTraining
from stablelightning.callbacks.kept_weights import fingerprint
from stablelightning.errors import CheckpointError, DataError, StableLightningWarning
from stablelightning.functional.row_keys import row_keys
from tests.callbacks.calibrated import TEST_ROWS, VALIDATION_ROWS, TooSure, rows
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import weights


class Worse(TooSure):
    """Its validation loss grows with every epoch, so that the first is the best."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float(self.current_epoch))


class After(FittedAfterTraining):
    """Another correction, that comes after calibration and remembers what it was fitted to."""

    rank: ClassVar[int] = 55

    def make_calibrator(self, task: str) -> TemperatureScaling:
        return TemperatureScaling()


def estimate() -> sl.EstimateUncertainty:
    return sl.EstimateUncertainty(samples=5)


def best(folder: Path, **settings: Any) -> ModelCheckpoint:
    settings = {"monitor": "val_loss", "filename": "best", **settings}
    return ModelCheckpoint(folder, **settings)


def fitted(*callbacks: L.Callback, model: L.LightningModule | None = None, **settings: Any):
    torch.manual_seed(0)
    model = model or TooSure()
    settings = {"max_epochs": 2, "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(model)
    return trainer, model


# ---- which weights ------------------------------------------------------------------------------


def test_it_is_fitted_to_the_best_weights_and_the_last_ones_are_left_as_they_were(tmp_path):
    calibrate = Calibrate()
    _, model = fitted(calibrate, estimate(), best(tmp_path), model=Worse())
    last = weights(model)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert kept["global_step"] == 5
    assert not all(map(torch.equal, last, kept["state_dict"].values()))
    model.load_state_dict(kept["state_dict"])
    assert calibrate.state_dict()["weights"] == fingerprint(model)


def test_other_weights_are_refused_and_the_best_are_taken(tmp_path):
    trainer, model = fitted(Calibrate(), estimate(), best(tmp_path), model=Worse())
    with pytest.raises(CheckpointError, match=r"fitted to other weights.*ckpt_path='best'"):
        trainer.test(model, verbose=False)
    trainer.test(model, ckpt_path="best", verbose=False)
    metrics = trainer.callback_metrics
    assert metrics["uncertainty/nll_calibrated"] < metrics["uncertainty/nll_mc"]


def test_without_a_checkpoint_it_is_fitted_to_the_weights_of_the_module():
    trainer, model = fitted(Calibrate(), estimate(), enable_checkpointing=False)
    trainer.test(model, verbose=False)
    assert "uncertainty/nll_calibrated" in trainer.callback_metrics


def test_the_files_that_hold_these_weights_are_rewritten_and_no_other(tmp_path):
    last = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fitted(Calibrate(), estimate(), best(tmp_path), last, model=Worse())
    states = {
        name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    }
    assert "calibrator" in states["best"]["callbacks"]["Calibrate"]
    assert "Calibrate" not in states["last"]["callbacks"]
    assert {path.name for path in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert states["best"]["optimizer_states"]


def test_both_files_are_rewritten_where_the_last_is_the_best(tmp_path):
    last = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    fitted(Calibrate(), estimate(), best(tmp_path), last)
    for name in ("best", "last"):
        state = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert "calibrator" in state["callbacks"]["Calibrate"]


def test_a_checkpoint_of_weights_only_carries_it_too(tmp_path):
    fitted(Calibrate(), estimate(), best(tmp_path, save_weights_only=True))
    trainer = quiet_trainer(Calibrate(), estimate())
    (first, *_) = trainer.predict(TooSure(), ckpt_path=tmp_path / "best.ckpt")
    assert first.corrected == ("temperature",)


def test_the_average_of_the_weights_is_what_it_is_fitted_to(tmp_path):
    trainer, model = fitted(
        Calibrate(), estimate(), EMAWeightAveraging(decay=0.5), best(tmp_path), max_epochs=1
    )
    trainer.test(model, verbose=False)  # the average was copied into the module
    assert "uncertainty/nll_calibrated" in trainer.callback_metrics


def test_training_is_the_same_to_the_bit(tmp_path):
    _, without = fitted(estimate(), best(tmp_path / "a"))
    _, with_it = fitted(estimate(), Calibrate(), best(tmp_path / "b"))
    assert all(map(torch.equal, weights(without), weights(with_it)))
    assert without.training == with_it.training


# ---- in a later process -------------------------------------------------------------------------

_PREDICT = """
import sys, torch, stablelightning as sl
from stablelightning.callbacks import Calibrate
from tests.callbacks.calibrated import TooSure
from tests.callbacks.modules import quiet_trainer
trainer = quiet_trainer(Calibrate(), sl.EstimateUncertainty(samples=5))
predictions = trainer.predict(TooSure(), ckpt_path=sys.argv[1], weights_only=True)
torch.save(torch.cat([p.mean for p in predictions]), sys.argv[2])
"""


def test_a_new_process_predicts_alike_from_the_checkpoint_alone(tmp_path):
    trainer, model = fitted(Calibrate(), estimate(), best(tmp_path))
    here = torch.cat([p.mean for p in trainer.predict(model, ckpt_path="best")])
    arguments = [sys.executable, "-W", "ignore", "-c", _PREDICT, str(tmp_path / "best.ckpt")]
    subprocess.run([*arguments, str(tmp_path / "mean.pt")], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "mean.pt"), here)


def test_a_resumed_run_fits_anew(tmp_path):
    calibrate = Calibrate()
    fitted(calibrate, estimate(), best(tmp_path))
    before = calibrate.state_dict()
    again, every = Calibrate(), best(tmp_path / "every", filename="{epoch}", save_top_k=-1)
    more = best(tmp_path / "more", mode="max")
    trainer = quiet_trainer(again, estimate(), more, every, max_epochs=4, enable_checkpointing=True)
    model = TooSure()
    trainer.fit(model, ckpt_path=tmp_path / "best.ckpt", weights_only=True)
    assert again.state_dict()["weights"] != before["weights"]
    kept = torch.load(tmp_path / "every" / "epoch=2.ckpt", weights_only=True)
    assert kept["callbacks"].get("Calibrate", again.state_dict())["weights"] != before["weights"]
    trainer.test(model, ckpt_path="best", verbose=False)
    assert "uncertainty/nll_calibrated" in trainer.callback_metrics


def test_while_training_goes_on_there_is_nothing_to_keep(tmp_path):
    class Look(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.state = trainer.callbacks[-1].state_dict()

    look = Look()
    trainer, model = fitted(Calibrate(), look, enable_checkpointing=False)
    assert look.state == {}
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model)
    assert look.state == {}


# ---- which rows ---------------------------------------------------------------------------------


def test_several_share_the_rows_in_disjoint_parts_and_the_later_sees_what_the_earlier_did(tmp_path):
    first, second = Calibrate(), After()
    trainer, model = fitted(second, estimate(), first, best(tmp_path))
    assert first.rows_fitted + second.rows_fitted == VALIDATION_ROWS
    assert abs(first.rows_fitted - second.rows_fitted) <= 1
    keys = row_keys(rows(VALIDATION_ROWS, 1).tensors[0])
    assert first.calibrator.seen(keys) + second.calibrator.seen(keys) == VALIDATION_ROWS
    # What is calibrated already needs another temperature near 1.
    assert first.calibrator.temperature > 2
    assert 0.5 < second.calibrator.temperature < 2
    (one, *_) = trainer.predict(model, ckpt_path="best")
    assert one.corrected == ("temperature", "temperature")


def test_the_rows_of_the_fit_are_refused(tmp_path):
    trainer, model = fitted(Calibrate(), estimate(), best(tmp_path))
    for loop in (trainer.test, trainer.predict):
        with pytest.raises(DataError, match="must not be judged by the rows that it was fitted on"):
            loop(model, dataloaders=model.val_dataloader(), ckpt_path="best")


class Last(After):
    """One more, so that no callback has seen half of the rows."""

    rank: ClassVar[int] = 56


def test_rows_that_several_share_are_refused_as_those_of_one_are(tmp_path):
    trainer, model = fitted(Calibrate(), After(), Last(), estimate(), best(tmp_path))
    again = DataLoader(rows(VALIDATION_ROWS, 1), batch_size=VALIDATION_ROWS)
    for loop in (trainer.test, trainer.predict):
        with pytest.raises(DataError, match="must not be judged by the rows that it was fitted on"):
            loop(model, dataloaders=again, ckpt_path="best")


def test_nobody_steps_over_that_refusal(tmp_path):
    """Uncertainty that is welcome but not required steps aside from errors of its own only."""
    welcome = sl.EstimateUncertainty(samples=5, required=False)
    trainer, model = fitted(Calibrate(), welcome, best(tmp_path))
    for loop in (trainer.test, trainer.predict):
        with pytest.raises(DataError, match="must not be judged by the rows that it was fitted on"):
            loop(model, dataloaders=model.val_dataloader(), ckpt_path="best")


def test_one_row_at_a_time_may_stand_in_both_sets(tmp_path):
    trainer, model = fitted(Calibrate(), estimate(), best(tmp_path))
    both = torch.utils.data.ConcatDataset(
        [rows(TEST_ROWS, 2), torch.utils.data.Subset(rows(VALIDATION_ROWS, 1), [0, 1])]
    )
    predictions = trainer.predict(
        model, dataloaders=DataLoader(both, batch_size=1), ckpt_path="best"
    )
    assert len(predictions) == TEST_ROWS + 2


def test_too_few_validation_rows_are_refused_before_the_first_step():
    model = TooSure()
    model.val_dataloader = lambda: DataLoader(rows(15, 1), batch_size=8)
    trainer = quiet_trainer(Calibrate(), After(), max_epochs=1)
    with pytest.raises(DataError, match=r"needs 20 validation rows or more \(2 callbacks.*got 15"):
        trainer.fit(model)
    assert trainer.global_step == 0


@pytest.mark.parametrize("settings", [{"limit_val_batches": 0}, {}])
def test_no_validation_data_is_refused_before_the_first_step(settings):
    model = TooSure()
    loaders = {"train_dataloaders": model.train_dataloader()}
    if not settings:

        class NoValidation(TooSure):
            val_dataloader = L.LightningModule.val_dataloader

        model = NoValidation()
    trainer = quiet_trainer(Calibrate(), max_epochs=1, **settings)
    with pytest.raises(DataError, match="needs validation data, and this run validates on none"):
        trainer.fit(model, **loaders)
    assert trainer.global_step == 0


def test_a_limit_of_batches_is_kept_to():
    calibrate = Calibrate()
    fitted(calibrate, enable_checkpointing=False, limit_val_batches=3)
    assert calibrate.rows_fitted == 24


class _Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(rows(30, 1))


def test_a_stream_of_rows_is_read_to_its_end():
    model = TooSure()
    model.val_dataloader = lambda: DataLoader(_Stream(), batch_size=8)
    calibrate = Calibrate()
    fitted(calibrate, model=model, enable_checkpointing=False)
    assert calibrate.rows_fitted == 30


def test_rows_without_a_target_are_told_before_anything_is_lost(tmp_path):
    class NoTarget(TooSure):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self(batch).sum())

        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(rows(40, 1).tensors[0], batch_size=8)

    says = "Calibrate could not be fitted.*needs validation rows with a target"
    with pytest.warns(StableLightningWarning, match=says):
        fitted(Calibrate(), best(tmp_path), model=NoTarget())
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert "needs validation rows" in state["callbacks"]["Calibrate"]["unfitted"]


class _Marked(Dataset[Any]):
    """Validation rows that say in which stage they were read."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return rows(20, 1)[index]


def test_hooks_of_the_data_know_that_this_is_no_training():
    class Augments(TooSure):
        seen: ClassVar[list[Any]] = []

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen.append(self.trainer.state.stage)
            return batch

        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(_Marked(), batch_size=20)

    model = Augments()
    fitted(Calibrate(), model=model, enable_checkpointing=False, max_epochs=1)
    assert model.seen[-1] == RunningStage.VALIDATING


# ---- who predicts -------------------------------------------------------------------------------


def test_a_trainer_that_does_not_sample_predicts_plainly(tmp_path):
    trainer, model = fitted(Calibrate(), best(tmp_path))
    (first, *_) = trainer.predict(model, ckpt_path="best")
    assert (first.samples_used, first.corrected) == (1, ("temperature",))
    trainer.test(model, ckpt_path="best", verbose=False)
    metrics = trainer.callback_metrics
    assert metrics["uncertainty/nll_calibrated"] < metrics["uncertainty/nll"]
    assert not any(isinstance(c, sl.EstimateUncertainty) for c in trainer.callbacks)


class SamplesItself(TooSure):
    def predict_step(self, batch: Any, batch_idx: int) -> sl.Prediction:
        return sl.mc_dropout(self, batch[0], samples=7)


def test_a_module_that_returns_predictions_is_calibrated_as_it_predicts(tmp_path):
    trainer, model = fitted(Calibrate(), best(tmp_path), model=SamplesItself())
    (first, *_) = trainer.predict(model, ckpt_path="best")
    assert (first.samples_used, first.corrected) == (7, ("temperature",))


def test_a_model_with_nothing_random_is_calibrated_plainly_where_sampling_is_not_required(tmp_path):
    model = TooSure()
    model.net[0].p = 0.0
    callbacks = Calibrate(), sl.EstimateUncertainty(samples=5, required=False), best(tmp_path)
    with pytest.warns(StableLightningWarning, match="plain predictions are calibrated"):
        trainer, _ = fitted(*callbacks, model=model)
    with pytest.warns(StableLightningWarning, match="plain predictions are calibrated"):
        trainer.test(model, ckpt_path="best", verbose=False)
    assert "uncertainty/nll_calibrated" in trainer.callback_metrics


def test_of_a_dry_run_nothing_is_fitted_or_asked():
    trainer, model = fitted(Calibrate(), estimate(), fast_dev_run=True)
    trainer.test(model, verbose=False)
    assert "uncertainty/nll_mc" in trainer.callback_metrics
    assert "uncertainty/nll_calibrated" not in trainer.callback_metrics


# ---- what is said -------------------------------------------------------------------------------


def test_without_a_training_it_says_what_it_needs():
    with pytest.raises(CheckpointError, match="must be fitted before it can correct predictions"):
        quiet_trainer(Calibrate(), estimate()).test(TooSure(), verbose=False)


def test_where_it_is_not_required_predictions_stay_as_they_are():
    trainer = quiet_trainer(Calibrate(required=False), estimate())
    with pytest.warns(StableLightningWarning, match="Calibrate steps aside"):
        (first, *_) = trainer.predict(TooSure())
    assert first.corrected == ()


def test_a_later_correction_without_the_earlier_is_refused(tmp_path):
    fitted(Calibrate(), After(), estimate(), best(tmp_path))
    trainer = quiet_trainer(After(), estimate())
    with pytest.raises(CheckpointError, match="as Calibrate left them, and now the samples come"):
        trainer.predict(TooSure(), ckpt_path=tmp_path / "best.ckpt")


def test_a_task_without_a_calibrator_is_named():
    class Labels(TooSure):
        task = "multilabel"

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self(batch[0]).sum())

        def val_dataloader(self) -> DataLoader[Any]:
            x = rows(40, 1).tensors[0]
            return DataLoader(
                torch.utils.data.TensorDataset(x, (x[:, :3] > 0).float()), batch_size=8
            )

    with pytest.warns(StableLightningWarning, match="could not be fitted.*got multilabel"):
        fitted(Calibrate(), estimate(), model=Labels(), enable_checkpointing=False)


def test_an_error_that_is_not_about_the_fit_is_raised_and_nothing_is_kept():
    class Fails(TooSure):
        over = False

        def on_train_end(self) -> None:
            self.over = True

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.over:
                raise KeyError("a file is gone")
            return batch

    calibrate = Calibrate()
    with pytest.raises(KeyError, match="a file is gone"):
        fitted(calibrate, model=Fails(), enable_checkpointing=False)
    assert calibrate.state_dict() == {}


def test_dense_predictions_are_refused_in_words():
    class Dense(TooSure):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).unsqueeze(2).expand(-1, -1, 4)

        def loss(self, batch: Any) -> Tensor:
            return self(batch[0]).square().mean()

        def inputs_and_target(self, batch: Any) -> Any:
            return batch[0], batch[1].unsqueeze(1).expand(-1, 4)

    says = "could not be fitted.*needs one prediction per row, got dense ones"
    with pytest.warns(StableLightningWarning, match=says):
        fitted(Calibrate(), model=Dense(), enable_checkpointing=False)
