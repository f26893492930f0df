"""The gap as it is measured in training: its numbers, its silence, its advice."""

import csv
import logging

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import MeasureGap
from stablelightning.errors import RecipeError, StableLightningWarning
from stablelightning.module import StableModule
from tests.callbacks.modules import Plain, data, quiet_trainer
from tests.contracts.models import weights

ROWS = 20


class Fits(Plain):
    """Dropout in training; the validation set is the training set unless told otherwise."""

    def __init__(self, validation=None):
        super().__init__()
        self.validation = validation or data(ROWS)
        self.evaluated = []

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.evaluated.append(batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self):
        return DataLoader(data(ROWS), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=8)


def measure(**settings):
    return MeasureGap(monitor="val_loss", **settings)


def fit(model, *callbacks, **settings):
    torch.manual_seed(0)
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 3, **settings})
    trainer.fit(model)
    return trainer


def test_the_same_data_has_no_gap_whatever_the_dropout():
    torch.manual_seed(0)
    callback = measure()
    fit(Fits(), callback)
    assert [gap.step for gap in callback.gaps] == [2, 5, 8]
    for gap in callback.gaps:
        assert gap.value == pytest.approx(0, abs=1e-6)


def test_the_training_loss_is_that_of_the_rows_in_eval():
    torch.manual_seed(0)
    callback, model = measure(rows=4), Fits()
    fit(model, callback)
    x, y = (t[[0, 6, 13, 19]] for t in data(ROWS).tensors)
    model.eval()
    expected = F.cross_entropy(model(x), y).item()
    assert callback.gaps[-1].train == pytest.approx(expected, rel=1e-5)
    assert callback.gaps[-1].value > -1


def test_the_loss_before_training_is_measured_first():
    torch.manual_seed(0)
    callback, model = measure(), Fits()
    x, y = data(ROWS).tensors
    expected = F.cross_entropy(model.eval()(x), y).item()
    fit(model.train(), callback)
    assert callback.state_dict()["start"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["plain", "stable"])
def test_training_metrics_and_logs_are_those_without_it(kind, tmp_path):
    written, learned = [], []
    for callbacks in ([], [measure() if kind == "plain" else MeasureGap()]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
        model = Fits() if kind == "plain" else StableModule(net, task="classification")
        loaders = (Fits().train_dataloader(), Fits().val_dataloader())
        logger = CSVLogger(str(tmp_path), name=f"{kind}{len(callbacks)}")
        trainer = quiet_trainer(*callbacks, logger=logger, max_epochs=3, log_every_n_steps=1)
        trainer.fit(model, *loaders)
        logger.save()
        with next((tmp_path / f"{kind}{len(callbacks)}").rglob("metrics.csv")).open() as file:
            rows = list(csv.DictReader(file))
        written.append([{k: v for k, v in r.items() if v and "regularize/" not in k} for r in rows])
        learned.append(weights(model))
        assert not hasattr(model, "evaluated") or len(model.evaluated) == 2 + 3 * 3
    assert all(map(torch.equal, *learned))
    assert [row for row in written[0] if len(row) > 2] == [r for r in written[1] if len(r) > 2]


def test_what_a_step_sends_to_its_logger_stays_silent(tmp_path):
    class Draws(Fits):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.logger.log_metrics({"drawn": 1.0}, step=self.global_step)

    logger = CSVLogger(str(tmp_path), name="log")
    trainer = fit(Draws(), measure(), logger=logger, num_sanity_val_steps=0)
    assert trainer.logger is logger
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows if row["drawn"]} == {"3", "6", "9"}
    told = [row for row in rows if row["regularize/gap"]]
    assert [int(row["step"]) for row in told] == [2, 5, 8]
    assert all(float(row["regularize/train"]) > 0 for row in told)


@pytest.mark.parametrize("first", [True, False], ids=["gap first", "average first"])
def test_an_average_is_measured_where_it_validates(first):
    torch.manual_seed(0)
    callback = measure()
    both = [callback, EMAWeightAveraging(decay=0.9)]
    fit(Fits(), *(both if first else both[::-1]))
    assert [gap.value for gap in callback.gaps] == pytest.approx([0] * 3, abs=1e-6)


def test_one_of_several_validation_loaders():
    class Two(Fits):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

        def val_dataloader(self):
            return [super().val_dataloader()] * 2

    torch.manual_seed(0)
    callback = MeasureGap(monitor="val_loss/dataloader_idx_1")
    fit(Two(), callback)
    assert [gap.value for gap in callback.gaps] == pytest.approx([0] * 3, abs=1e-6)


def test_a_resumed_run_has_measured_the_same(tmp_path):
    unbroken, resumed = measure(), measure()
    every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(Fits(), unbroken, every, enable_checkpointing=True)
    trainer = quiet_trainer(resumed, max_epochs=3)
    trainer.fit(Fits(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert resumed.state_dict()["start"] == unbroken.state_dict()["start"]
    assert resumed.gaps[:2] == unbroken.gaps[:2]
    assert len(resumed.gaps) == 3


# ---- advice -------------------------------------------------------------------------------------


def test_noise_that_is_learned_by_heart_gets_advice(caplog):
    generator = torch.Generator().manual_seed(1)
    other = TensorDataset(
        torch.randn(40, 4, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    )

    class Learns(Fits):
        def __init__(self):
            super().__init__(validation=other)
            self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3))

    torch.manual_seed(0)
    callback = measure()
    with caplog.at_level(logging.INFO):
        fit(Learns(), callback, max_epochs=40)
    assert any("add_dropout" in sentence for sentence in callback.advice)
    assert any("Nesterov" in sentence for sentence in callback.advice)
    assert all(sentence in caplog.text for sentence in callback.advice)


# ---- what cannot be measured --------------------------------------------------------------------


class Silent(Fits):
    def validation_step(self, batch, batch_idx):
        pass


class OnlyValidates(Fits):
    """A validation set of another form than the training set."""

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def val_dataloader(self):
        x, y = data(ROWS).tensors
        return DataLoader(TensorDataset(x, y, y), batch_size=8)


@pytest.mark.parametrize(
    ("kind", "why"), [(Silent, "not logged"), (OnlyValidates, "not enough values")]
)
def test_what_cannot_be_measured_is_refused_or_told(kind, why):
    with pytest.raises(RecipeError, match=why):
        fit(kind(), measure())
    with pytest.warns(StableLightningWarning, match=why) as heard:
        fit(kind(), measure(required=False))
    assert len([w for w in heard if "MeasureGap" in str(w.message)]) == 1


def test_without_validation_there_is_nothing_to_do():
    callback = measure()
    fit(Fits(), callback, limit_val_batches=0)
    assert callback.gaps == []


@pytest.mark.parametrize("rows", [0, -1, 2.5, True])
def test_numbers_of_rows_out_of_range_are_refused(rows):
    with pytest.raises(RecipeError, match="rows must be a whole number >= 1"):
        MeasureGap(rows)


def test_sharded_models_are_refused_in_words():
    trainer = quiet_trainer()
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(RecipeError, match="whole model"):
        MeasureGap().setup(trainer, Fits(), "fit")
