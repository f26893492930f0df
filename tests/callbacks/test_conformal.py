"""Conformal sets in a training: calibrated after it, kept in the checkpoint, the same for a row."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.calibration import VarianceScaling
from stablelightning.calibration.conformal_scores import AdaptiveScore, QuantileScore
from stablelightning.callbacks import Calibrate, EstimateUncertainty, PredictSets
from stablelightning.errors import (
    CheckpointError,
    DataError,
    RecipeError,
    StableLightningWarning,
)
from stablelightning.functional.conformal_coverage import coverage_band
from stablelightning.module import StableModule
from stablelightning.nn import MLP, QuantileMLP

ROWS = 400


class Rows(L.LightningDataModule):
    """Three classes that overlap, or a value whose noise grows, in units of its own."""

    def __init__(self, kind: str = "classes", *, validation: int = ROWS, batch: int = 40) -> None:
        super().__init__()
        self.kind, self.validation, self.batch = kind, validation, batch
        if kind == "values":
            self.target_scale = (torch.tensor(100.0), torch.tensor(7.0))

    def part(self, seed: int, rows: int = ROWS) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 3, generator=generator)
        noise = torch.randn(rows, 3, generator=generator)
        if self.kind == "classes":
            y = (x + 0.7 * noise).argmax(1)
        elif self.kind == "labels":
            y = (x + noise > 0).float()
        else:
            y = x[:, 0] + (0.1 + x[:, 1].abs()) * noise[:, 0]
        return DataLoader(TensorDataset(x, y), batch_size=self.batch)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.part(0)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.part(1, self.validation)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.part(2)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.part(2).dataset.tensors[0], batch_size=self.batch)


def module(kind: str = "classes", *, quantiles: bool = False, samples: int = 50) -> StableModule:
    torch.manual_seed(0)
    task: Any = {"classes": "classification", "labels": "multilabel"}.get(kind, "regression")
    outputs = 1 if task == "regression" else 3
    network = (
        QuantileMLP(3, hidden=[16])
        if quantiles
        else MLP(3, outputs, hidden=[16], variance=task == "regression")
    )
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731
    return StableModule(network=network, task=task, optimizer=optimizer, samples=samples)


def trainer(
    *callbacks: L.Callback, folder: Path | None = None, samples: int = 8, **settings: Any
) -> L.Trainer:
    kept: list[L.Callback] = [ModelCheckpoint(folder, monitor="val/loss")] if folder else []
    kept += [EstimateUncertainty(samples=samples)] if samples else []
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, *kept],
        **{"max_epochs": 3, **settings},
    )


def results(host: L.Trainer) -> dict[str, float]:
    return next(c for c in host.callbacks if isinstance(c, EstimateUncertainty)).results


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_test_rows_are_held_as_promised_and_told(kind: str, tmp_path: Path) -> None:
    sets = PredictSets(0.2)
    host = trainer(sets, folder=tmp_path)
    net, data = module(kind), Rows(kind)
    host.fit(net, data)
    assert sets.rows_fitted == ROWS
    host.test(net, data, ckpt_path="best", verbose=False)
    told = results(host)
    low, high = coverage_band(ROWS, ROWS, 0.2, probability=0.999)
    assert low <= told["uncertainty/coverage"] <= high
    assert told["uncertainty/level"] == pytest.approx(0.8)
    rows = next(c for c in host.callbacks if isinstance(c, EstimateUncertainty)).rows
    if kind == "classes":
        sizes = rows["sets"].sum(1).float()
        assert told["uncertainty/set_size"] == pytest.approx(float(sizes.mean()))
        assert 1 <= told["uncertainty/set_size"] < 3
        return
    width = rows["upper"] - rows["lower"]
    assert told["uncertainty/width"] == pytest.approx(float(width.mean()))
    assert float(rows["lower"].mean()) < 100 < float(rows["upper"].mean())  # in target units
    assert float(width.std()) > 0.5  # scaled by what each row is said to be sure of


def test_a_checkpoint_alone_predicts_the_same_sets_in_any_batch(tmp_path: Path) -> None:
    sets = PredictSets(0.2, score=AdaptiveScore())
    # Predicted plainly, means do not depend on the batch: what is left is the draw of the sets.
    host = trainer(sets, folder=tmp_path, samples=0)
    net, data = module(samples=0), Rows()
    host.fit(net, data)
    best = host.checkpoint_callback.best_model_path
    found = []
    for batch in (40, 7):
        fresh = trainer(PredictSets(0.2, score=AdaptiveScore()), samples=0)
        predictions = fresh.predict(net, Rows(batch=batch), ckpt_path=best)
        found.append(torch.cat([each.sets for each in predictions]))
        assert {each.level for each in predictions} == {0.8}
    assert torch.equal(*found)
    assert 0 < float(found[0].float().mean()) < 1


def test_quantiles_are_conformalized_in_target_units(tmp_path: Path) -> None:
    sets = PredictSets(0.2)
    host = trainer(sets, folder=tmp_path)
    net, data = module("values", quantiles=True), Rows("values")
    host.fit(net, data)
    assert isinstance(sets.calibrator.fitted_score, QuantileScore)
    host.test(net, data, ckpt_path="best", verbose=False)
    low, high = coverage_band(ROWS, ROWS, 0.2, probability=0.999)
    assert low <= results(host)["uncertainty/coverage"] <= high
    assert results(host)["uncertainty/level"] == pytest.approx(0.8)


def test_quantiles_without_sets_tell_what_they_hold() -> None:
    host = trainer()
    net, data = module("values", quantiles=True), Rows("values")
    host.fit(net, data)
    host.test(net, data, verbose=False)
    assert results(host)["uncertainty/level"] == pytest.approx(0.9)
    assert 0.5 < results(host)["uncertainty/coverage"] < 1
    assert results(host)["uncertainty/width"] > 1


def test_after_calibration_it_learns_from_other_rows_of_calibrated_predictions(
    tmp_path: Path,
) -> None:
    sets, variance = PredictSets(0.2), Calibrate(VarianceScaling())
    host = trainer(sets, variance, folder=tmp_path)
    net, data = module("values"), Rows("values")
    host.fit(net, data)
    assert sets.rows_fitted + variance.rows_fitted == ROWS
    assert not bool(torch.isin(sets.calibrator._seen, variance.calibrator._seen).any())
    predictions = host.predict(net, data, ckpt_path="best")
    assert all(each.corrected[-1] == "conformal" for each in predictions)
    assert all(len(each.corrected) == 2 for each in predictions)
    host.test(net, data, ckpt_path="best", verbose=False)
    low, high = coverage_band(ROWS // 2, ROWS, 0.2, probability=0.999)
    assert low <= results(host)["uncertainty/coverage"] <= high


def test_another_alpha_than_that_of_the_thresholds_is_refused(tmp_path: Path) -> None:
    host = trainer(PredictSets(0.2), folder=tmp_path)
    net, data = module(), Rows()
    host.fit(net, data)
    best = host.checkpoint_callback.best_model_path
    with pytest.raises(CheckpointError, match=r"fitted for 0\.2, got alpha=0\.1; set it back"):
        trainer(PredictSets(0.1)).predict(net, data, ckpt_path=best)
    more = trainer(PredictSets(0.1), max_epochs=4)  # a training that goes on fits anew
    more.fit(net, data, ckpt_path=best)
    assert more.callbacks[-1].calibrator.alpha == 0.1


def test_too_few_rows_are_refused_before_training() -> None:
    net = module()
    with pytest.raises(DataError, match="PredictSets needs 20 validation rows or more"):
        trainer(PredictSets(0.05)).fit(net, Rows(validation=19))
    with pytest.warns(StableLightningWarning, match="PredictSets steps aside"):
        trainer(PredictSets(0.05, required=False)).fit(net, Rows(validation=19))


def test_labels_have_no_sets() -> None:
    says = "could not be fitted.*PredictSets is for classification and regression"
    with pytest.warns(StableLightningWarning, match=says):
        trainer(PredictSets(), max_epochs=1).fit(module("labels"), Rows("labels"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.0}, "alpha must be in"),
        ({"score": "aps"}, "score must be a conformity score"),
        ({"seed": -1}, "seed must be a whole number"),
    ],
)
def test_bad_settings_die_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PredictSets(**settings)
