import copy
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import stablelightning as sl
from stablelightning.calibration import (
    IsotonicCalibration,
    QuantileRecalibration,
    TemperatureScaling,
    VarianceScaling,
    VectorScaling,
)
from stablelightning.callbacks import Calibrate
from stablelightning.errors import RecipeError
from stablelightning.functional.scores import negative_log_likelihood
from tests.callbacks.calibrated import TEST_ROWS, VALIDATION_ROWS, TooSure, TooSureOfValues
from tests.callbacks.modules import quiet_trainer
from tests.processes import WORLD, reports_of


def trial(calibrate: Calibrate, model: L.LightningModule, **settings: Any):
    torch.manual_seed(0)
    estimate = sl.EstimateUncertainty(samples=5)
    trainer = quiet_trainer(calibrate, estimate, max_epochs=1, **settings)
    trainer.fit(model)
    trainer.test(model, verbose=False)
    return trainer, estimate


def test_scores_of_the_calibrated_mean_are_logged_and_its_rows_are_kept():
    calibrate = Calibrate()
    trainer, estimate = trial(calibrate, TooSure())
    logged, rows = trainer.callback_metrics, estimate.rows
    for name in ("accuracy", "nll", "brier", "ece"):
        assert f"uncertainty/{name}_calibrated" in logged
    assert logged["uncertainty/nll_calibrated"] < logged["uncertainty/nll_mc"]
    assert logged["uncertainty/accuracy_calibrated"] == logged["uncertainty/accuracy_mc"]
    nll = negative_log_likelihood(rows["calibrated"], rows["target"]).mean()
    torch.testing.assert_close(logged["uncertainty/nll_calibrated"], nll)
    expected = calibrate.calibrator.temperature
    scores = (rows["mean"].double().log() / expected).softmax(1)
    torch.testing.assert_close(rows["calibrated"].double(), scores, atol=1e-5, rtol=0)
    parts = rows["aleatoric_calibrated"] + rows["epistemic_calibrated"]
    torch.testing.assert_close(parts, rows["total_calibrated"])


@pytest.mark.parametrize("method", [VectorScaling, IsotonicCalibration], ids=lambda m: m.__name__)
def test_any_method_for_classes_is_a_setting(method):
    pytest.importorskip("sklearn")
    pattern = method()
    calibrate = Calibrate(pattern)
    trainer, _ = trial(calibrate, TooSure())
    assert type(calibrate.calibrator) is method
    assert not pattern.fitted
    logged = trainer.callback_metrics
    assert logged["uncertainty/nll_calibrated"] < logged["uncertainty/nll_mc"]


@pytest.mark.parametrize("method", [None, QuantileRecalibration()])
def test_a_regression_gets_wider_intervals(method):
    calibrate = Calibrate(method)
    trainer, estimate = trial(calibrate, TooSureOfValues())
    assert type(calibrate.calibrator) in (VarianceScaling, QuantileRecalibration)
    logged, rows = trainer.callback_metrics, estimate.rows
    assert logged["uncertainty/nll_calibrated"] < logged["uncertainty/nll_mc"]
    assert logged["uncertainty/coverage_90_calibrated"] > logged["uncertainty/coverage_90_mc"]
    assert rows["calibrated"].shape == rows["target"].shape == (TEST_ROWS,)
    assert ("below_calibrated" in rows) == isinstance(method, QuantileRecalibration)


class _Scaled(L.LightningDataModule):
    """A target of another unit, as the tabular data module standardises it."""

    target_scale = (100.0, 20.0)

    def __init__(self) -> None:
        super().__init__()
        model = TooSureOfValues()
        self.train_dataloader, self.val_dataloader = model.train_dataloader, model.val_dataloader
        self.test_dataloader = self.predict_dataloader = model.test_dataloader


def test_values_are_calibrated_in_their_own_units():
    callbacks, data = (Calibrate(), sl.EstimateUncertainty(samples=5)), _Scaled()
    torch.manual_seed(0)
    trainer, model = quiet_trainer(*callbacks, max_epochs=1), TooSureOfValues()
    trainer.fit(model, datamodule=data)
    (first, *_) = trainer.predict(model, datamodule=data)
    torch.manual_seed(0)
    plain, other = quiet_trainer(*map(copy.deepcopy, callbacks), max_epochs=1), TooSureOfValues()
    plain.fit(other)
    (standard, *_) = plain.predict(other)
    torch.testing.assert_close(first.mean, 100 + 20 * standard.mean)
    torch.testing.assert_close(first.total, 400 * standard.total)


def test_a_prediction_says_how_it_was_corrected():
    trainer, _ = trial(Calibrate(), TooSure())
    predictions = trainer.predict(trainer.lightning_module)
    assert {p.corrected for p in predictions} == {("temperature",)}
    assert all(p.samples is None for p in predictions)


@pytest.mark.parametrize("method", ["temperature", TemperatureScaling])
def test_a_method_must_be_a_calibrator(method):
    with pytest.raises(RecipeError, match="method must be a calibrator"):
        Calibrate(method)


def test_its_least_rows_are_those_of_its_method():
    assert Calibrate().least_rows == TemperatureScaling.least_rows
    assert Calibrate(IsotonicCalibration()).least_rows == IsotonicCalibration.least_rows


# ---- two processes ------------------------------------------------------------------------------


def _report(rank: int) -> dict[str, Any]:
    folder = Path(os.environ["CALIBRATED_FOLDER"])
    torch.manual_seed(0)
    calibrate, estimate = Calibrate(), sl.EstimateUncertainty(samples=200)
    keeper = ModelCheckpoint(folder, monitor="val_loss", filename="best")
    trainer = quiet_trainer(
        calibrate,
        estimate,
        keeper,
        strategy="ddp",
        devices=WORLD,
        max_epochs=2,
        enable_checkpointing=True,
    )
    model = TooSure()
    trainer.fit(model)
    state = calibrate.state_dict()
    trainer.test(model, ckpt_path="best", verbose=False)
    logged = {k: v.item() for k, v in trainer.callback_metrics.items() if "uncertainty" in k}
    return {"state": state, "logged": logged, "rows": estimate.rows}


def test_two_processes_fit_together_what_one_fits_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRATED_FOLDER", str(tmp_path / "kept"))
    (tmp_path / "reports").mkdir()
    first, second = reports_of(_report, tmp_path / "reports")
    a, b = first["state"], second["state"]
    assert a["rows"] == b["rows"] == VALIDATION_ROWS
    assert a["weights"] == b["weights"]
    assert a["calibrator"]["temperature"] == b["calibrator"]["temperature"]
    assert first["logged"] == second["logged"]
    assert first["rows"]["index"].tolist() == list(range(TEST_ROWS))
    assert len(first["rows"]["calibrated"]) == TEST_ROWS
    # One process, from the same weights: other draws of the same dropout, nearly the same number.
    kept = torch.load(tmp_path / "kept" / "best.ckpt", weights_only=True)
    assert kept["callbacks"]["Calibrate"]["weights"] == a["weights"]
    model, alone = TooSure(), Calibrate()
    model.load_state_dict(kept["state_dict"])
    trainer = quiet_trainer(alone, sl.EstimateUncertainty(samples=200), max_epochs=0)
    trainer.fit(model)
    assert alone.state_dict()["weights"] == a["weights"]
    assert alone.calibrator.temperature == pytest.approx(a["calibrator"]["temperature"], rel=0.05)
