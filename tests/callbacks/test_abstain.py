"""Abstention in a training: thresholds from validation rows, answers and reasons in test rows."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks.abstain import AbstainWhenUnsure
from stablelightning.callbacks.calibrate import Calibrate
from stablelightning.callbacks.uncertainty import EstimateUncertainty
from stablelightning.errors import DataError, RecipeError, StableLightningWarning
from stablelightning.functional.abstain import REASONS

ROWS = 200


class Rows(L.LightningDataModule):
    """Two classes that overlap, or a target with noise."""

    def __init__(self, *, regression: bool = False, validation: int = ROWS) -> None:
        super().__init__()
        self.regression, self.validation = regression, validation

    def part(self, seed: int, rows: int = ROWS) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 4, generator=generator)
        noise = torch.randn(rows, generator=generator)
        value = x[:, 0] + 0.5 * noise
        y = value if self.regression else (value > 0).long()
        return DataLoader(TensorDataset(x, y), batch_size=32)

    def train_dataloader(self) -> DataLoader:
        return self.part(0)

    def val_dataloader(self) -> DataLoader:
        return self.part(1, self.validation)

    def test_dataloader(self) -> DataLoader:
        return self.part(2)

    def predict_dataloader(self) -> DataLoader:
        x = self.part(3).dataset.tensors[0]
        return DataLoader(torch.cat([x, 1000 * x[:20]]), batch_size=64)


class Net(L.LightningModule):
    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        hidden = nn.Linear(4, 32)
        self.net = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, outputs))

    def forward(self, x: Tensor) -> Tensor:
        output = self.net(x)
        return output if output.shape[1] > 1 else output.squeeze(1)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        output = self(x)
        return F.mse_loss(output, y) if output.ndim == 1 else F.cross_entropy(output, y)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def trainer_with(tmp_path, *callbacks: L.Callback, **settings) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        max_epochs=4,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EstimateUncertainty(samples=20), *callbacks],
        **settings,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.manual_seed(0)
    abstain = AbstainWhenUnsure(coverage=0.7)
    trainer = trainer_with(tmp_path_factory.mktemp("run"), abstain)
    model, data = Net(), Rows()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
    return trainer, model, data, abstain


def estimate(trainer: L.Trainer) -> EstimateUncertainty:
    return next(c for c in trainer.callbacks if isinstance(c, EstimateUncertainty))


def test_thresholds_are_chosen_on_the_validation_rows(finished):
    abstain = finished[3]
    assert abstain.thresholds.coverage == pytest.approx(0.7, abs=1 / ROWS)
    assert abstain.rows_fitted == ROWS
    assert abstain.thresholds.bound is None


def test_every_test_row_says_whether_it_is_answered_and_why_not(finished):
    trainer, _, _, abstain = finished
    rows = estimate(trainer).rows
    total = rows["total"]
    over = (total > abstain.thresholds.total) | (rows["epistemic"] > abstain.thresholds.epistemic)
    assert torch.equal(rows["answered"], ~over)
    assert torch.equal(rows["reason"] == 0, rows["answered"])
    assert 0.6 < rows["answered"].float().mean() < 0.8
    results = estimate(trainer).results
    assert results["uncertainty/answered"] == pytest.approx(rows["answered"].float().mean().item())
    assert results["uncertainty/accuracy_answered"] > results["uncertainty/accuracy_mc"]


def test_predictions_abstain_from_the_checkpoint_alone(finished, tmp_path):
    trainer, _, data, abstain = finished
    fresh = AbstainWhenUnsure(coverage=0.7)
    again = trainer_with(tmp_path, fresh)
    path = trainer.checkpoint_callback.best_model_path
    predictions = again.predict(Net(), datamodule=data, ckpt_path=path)
    assert fresh.thresholds == abstain.thresholds
    reasons = [reason for prediction in predictions for reason in prediction.reasons]
    assert len(reasons) == ROWS + 20
    assert set(reasons) <= set(REASONS)
    # Inputs a thousand times as large as any known one.
    strange = reasons[-20:]
    assert strange.count("out of distribution") > 5
    assert reasons[:-20].count("out of distribution") < 20
    assert all(prediction.corrected == ("abstention",) for prediction in predictions)


def test_a_regression_abstains_in_its_own_units(tmp_path):
    torch.manual_seed(0)
    abstain = AbstainWhenUnsure(coverage=0.5)
    trainer = trainer_with(tmp_path, abstain)
    model, data = Net(outputs=1), Rows(regression=True)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
    results = estimate(trainer).results
    assert 0.35 < results["uncertainty/answered"] < 0.65
    assert 0 < results["uncertainty/rmse_answered"] < 2
    assert 0 < abstain.thresholds.risk < 2


def test_a_risk_out_of_reach_is_said_with_the_best_that_can_be_had(tmp_path):
    abstain = AbstainWhenUnsure(risk=0.1, confidence=0.999)
    trainer = trainer_with(tmp_path, abstain)
    best = r"could not be fitted.*got 0.1 with confidence 0.999, and the best of 60"
    with pytest.warns(StableLightningWarning, match=best):
        trainer.fit(Net(), datamodule=Rows(validation=60))
    assert abstain.thresholds is None


@pytest.mark.parametrize("required", [True, False])
def test_a_risk_out_of_reach_loses_neither_the_other_fits_nor_the_test(tmp_path, required):
    calibrate, abstain = Calibrate(), AbstainWhenUnsure(risk=1e-3, required=required)
    trainer = trainer_with(tmp_path, calibrate, abstain)
    model, data = Net(), Rows()
    with pytest.warns(StableLightningWarning, match="could not be fitted.*risk must be"):
        trainer.fit(model, datamodule=data)
    with pytest.warns(StableLightningWarning, match="AbstainWhenUnsure steps aside: risk must be"):
        trainer.test(model, datamodule=data, ckpt_path="best", verbose=False)
    rows = estimate(trainer).rows
    assert "calibrated" in rows
    assert "answered" not in rows


def test_a_checkpoint_remembers_that_the_risk_was_out_of_reach(tmp_path):
    trainer = trainer_with(tmp_path, Calibrate(), AbstainWhenUnsure(risk=1e-3))
    data = Rows()
    with pytest.warns(StableLightningWarning, match="could not be fitted"):
        trainer.fit(Net(), datamodule=data)
    again = trainer_with(tmp_path / "again", Calibrate(), AbstainWhenUnsure(risk=1e-3))
    path = trainer.checkpoint_callback.best_model_path
    with pytest.warns(StableLightningWarning, match="AbstainWhenUnsure steps aside: risk must be"):
        (first, *_) = again.predict(Net(), datamodule=data, ckpt_path=path, weights_only=True)
    assert first.corrected == ("temperature",)
    assert first.answered is None


def test_too_few_validation_rows_are_refused_before_training(tmp_path):
    trainer = trainer_with(tmp_path, AbstainWhenUnsure(coverage=0.9))
    with pytest.raises(DataError, match="needs 10 validation rows or more"):
        trainer.fit(Net(), datamodule=Rows(validation=9))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"coverage": None}, "either risk or coverage"),
        ({"coverage": 0.999}, "at most 1 together"),
        ({"coverage": 1.2}, r"coverage must be in \(0, 1\]"),
        ({"risk": -1}, "risk must be > 0"),
        ({"coverage": 0.9, "confidence": 0.9}, "confidence promises a risk"),
        ({"risk": 0.1, "unfamiliar": -0.1}, "unfamiliar must be"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(settings, says):
    with pytest.raises(RecipeError, match=says):
        AbstainWhenUnsure(**settings)


def test_a_risk_is_what_decides_where_it_is_asked_for():
    assert AbstainWhenUnsure(risk=0.1).make_calibrator("classification").coverage is None
    assert AbstainWhenUnsure().make_calibrator("classification").coverage == 0.9
