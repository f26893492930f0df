"""The model that a training leaves: the right weights, folded, checked; and never a failed run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from stablelightning.callbacks import ExportModel
from stablelightning.errors import (
    MissingPackageError,
    ModelError,
    RecipeError,
    StableLightningWarning,
)
from tests.callbacks.modules import quiet_trainer
from tests.contracts.models import Seeded, weights

X = torch.randn(5, 4)


def program(folder: Path, name: str = "model.pt2") -> nn.Module:
    return torch.export.load(folder / name).module()


def fit(*callbacks: L.Callback, model: L.LightningModule | None = None, **settings):
    torch.manual_seed(0)
    model = model or Seeded()
    trainer = quiet_trainer(*callbacks, **{"max_epochs": 2, **settings})
    trainer.fit(model)
    return trainer, model


def test_the_file_is_the_trained_model_folded(tmp_path):
    export = ExportModel(tmp_path, batch_sizes=[1, 4])
    _, model = fit(export)
    torch.testing.assert_close(program(tmp_path)(X), model.eval()(X), rtol=1e-4, atol=1e-5)
    names = [name for name, _ in program(tmp_path).named_buffers()]
    assert not any("running_mean" in name for name in names)
    assert isinstance(model.net[1], nn.BatchNorm1d)
    assert export.latency.folded == 1
    assert [row.batch_size for row in export.latency.rows] == [1, 4]


def test_unfolded_if_that_is_asked_for(tmp_path):
    fit(ExportModel(tmp_path, fold=False, batch_sizes=[]))
    assert any("running_mean" in name for name, _ in program(tmp_path).named_buffers())


def test_with_live_dropout_as_well(tmp_path):
    export = ExportModel(tmp_path, mc=True, batch_sizes=[])
    fit(export)
    assert [Path(file.path).name for file in export.exported] == ["model.pt2", "model_mc.pt2"]
    live = program(tmp_path, "model_mc.pt2")
    assert not torch.equal(live(X), live(X))
    assert torch.equal(program(tmp_path)(X), program(tmp_path)(X))


@pytest.mark.parametrize("best", [True, False])
def test_the_best_checkpoints_weights_or_the_last(best, tmp_path):
    first = ModelCheckpoint(tmp_path, monitor="val_loss", mode="max", save_top_k=1)
    export = ExportModel(tmp_path, best=best, fold=False, batch_sizes=[])
    _, model = fit(export, first, enable_checkpointing=True, limit_val_batches=1)
    checkpoint = torch.load(first.best_model_path, weights_only=True)["state_dict"]
    other = Seeded()
    other.load_state_dict(checkpoint)
    kept = (other if best else model).eval()
    torch.testing.assert_close(program(tmp_path)(X), kept(X))
    pairs = zip(weights(other), weights(model), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_that_no_longer_fits_is_told(tmp_path):
    class Grows(L.Callback):
        def on_train_end(self, trainer, pl_module):
            pl_module.net.append(nn.Linear(3, 3))

    keeper = ModelCheckpoint(tmp_path)
    export = ExportModel(tmp_path, batch_sizes=[])
    with pytest.warns(StableLightningWarning, match="does not fit the model as it is now"):
        fit(Grows(), export, keeper, enable_checkpointing=True)
    assert len(export.exported) == 1


class ByValue(Seeded):
    """A forward that torch.export cannot follow."""

    def forward(self, x):
        return self.net(x) if float(x.sum()) > -1e9 else x


def test_what_cannot_be_exported_ends_no_training(tmp_path):
    export = ExportModel(tmp_path, batch_sizes=[1])
    with pytest.warns(StableLightningWarning, match=r"one that torch\.export can follow"):
        trainer, _ = fit(export, model=ByValue())
    assert trainer.global_step == 12
    assert export.exported == []
    assert list(tmp_path.iterdir()) == []
    assert export.latency is not None


def test_nothing_random_costs_only_the_live_file(tmp_path):
    model = Seeded()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    export = ExportModel(tmp_path, mc=True, batch_sizes=[])
    with pytest.warns(StableLightningWarning, match="add_dropout"):
        fit(export, model=model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_files_lie_beside_the_log_and_latency_is_in_it(tmp_path):
    logger = CSVLogger(str(tmp_path))
    export = ExportModel(batch_sizes=[2])
    fit(export, logger=logger)
    logger.save()
    assert (Path(logger.log_dir) / "model.pt2").exists()
    log = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "latency/one_pass_ms/2" in log
    assert "latency/one_pass_folded_ms/2" in log


def test_without_a_logger_files_lie_in_the_root(tmp_path):
    fit(ExportModel(batch_sizes=[]), default_root_dir=tmp_path)
    assert (tmp_path / "model.pt2").exists()


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    export = ExportModel(tmp_path, batch_sizes=[])
    fit(export, fast_dev_run=True, max_epochs=None)
    assert len(export.exported) == 1
    assert list(tmp_path.iterdir()) == []


def test_sharded_strategies_are_refused_in_words():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(ModelError, match="one place, and FSDPStrategy spreads it"):
        ExportModel()._copied(trainer, Seeded())


def test_bad_settings():
    with pytest.raises(RecipeError, match="batch_sizes must be"):
        ExportModel(batch_sizes=[0])


def test_missing_packages_are_told_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    trainer = quiet_trainer(ExportModel(onnx=True), max_epochs=1)
    with pytest.raises(MissingPackageError, match="onnx"):
        trainer.fit(Seeded())
    assert trainer.global_step == 0
