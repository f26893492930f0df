"""The file at the end of a fit: of the best checkpoint, of pretraining modules unless asked."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import SaveBackbone
from stablelightning.errors import StableLightningWarning
from stablelightning.module import StableModule
from stablelightning.nn import ConvNet
from stablelightning.pretraining import RotationPrediction
from tests.processes import reports_of

IMAGES = torch.randn(12, 1, 8, 8)


def trainer(folder, *callbacks, **settings):
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1}
    usual |= {"enable_model_summary": False, "enable_checkpointing": False, "devices": 1}
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(usual | settings))


def images():
    return DataLoader(TensorDataset(IMAGES, torch.zeros(12, dtype=torch.long)), batch_size=6)


def rotation():
    return RotationPrediction(ConvNet(1, 3, channels=[4], dropout=0.0))


def test_a_pretraining_module_leaves_its_features(tmp_path):
    save, module = SaveBackbone(required=False), rotation()
    trainer(tmp_path, save).fit(module, images())
    assert save.path == tmp_path / "backbone.safetensors"
    kept = load_file(save.path)
    assert kept.keys() == module.network.state_dict().keys()
    assert not any(name.startswith(("head", "turns")) for name in kept)
    with safe_open(save.path, framework="pt") as file:
        assert file.metadata()["objective"] == "rotation"
        assert file.metadata()["head"] == "head"


@pytest.mark.parametrize("best", [True, False])
def test_the_best_checkpoints_weights_or_the_last(best, tmp_path):
    class Worse(RotationPrediction):
        def on_validation_epoch_end(self):
            self.log("quality", float(self.current_epoch == 0))

    keeper = ModelCheckpoint(tmp_path, monitor="quality", mode="max")
    save = SaveBackbone(best=best)
    run = trainer(tmp_path, save, keeper, enable_checkpointing=True, max_epochs=3)
    module = Worse(ConvNet(1, 3, channels=[4], dropout=0.0))
    run.fit(module, images(), images())
    first = torch.load(keeper.best_model_path, weights_only=True)["state_dict"]
    expected = first if best else module.state_dict()
    kept = load_file(save.path)
    assert all(torch.equal(value, expected[f"network.{name}"]) for name, value in kept.items())
    assert not torch.equal(first["network.body.0.0.weight"], module.network.body[0][0].weight)


def test_an_ordinary_module_leaves_one_only_where_that_is_asked_for(tmp_path):
    def fitted(**settings):
        save = SaveBackbone(**settings)
        module = StableModule(ConvNet(1, 3, channels=[4]), task="classification")
        trainer(tmp_path, save).fit(module, images())
        return save.path, module

    assert fitted(required=False)[0] is None
    assert list(tmp_path.iterdir()) == []
    path, module = fitted()
    kept = load_file(path)
    assert all(torch.equal(kept[k], v) for k, v in module.network.state_dict().items())
    assert "head.weight" in kept


def test_a_module_without_a_network_is_written_whole(tmp_path):
    save = SaveBackbone(tmp_path / "there")
    trainer(tmp_path, save, max_steps=1).fit(BoringModel())
    assert set(load_file(save.path)) == {"layer.weight", "layer.bias"}
    assert save.path.parent.name == "there"


def test_a_trial_run_writes_nothing(tmp_path):
    save = SaveBackbone()
    trainer(tmp_path, save, fast_dev_run=True).fit(rotation(), images())
    assert save.path is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_cost_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    save = SaveBackbone(tmp_path / "file")
    with pytest.warns(StableLightningWarning, match="SaveBackbone steps aside: .*must be written"):
        trainer(tmp_path, save).fit(rotation(), images())
    assert save.path is None


def test_a_checkpoint_of_another_structure_gives_way_to_the_last_weights(tmp_path):
    class Loses(L.Callback):
        def on_train_end(self, trainer, pl_module):
            pl_module.put_head_back()

    keeper = ModelCheckpoint(tmp_path)
    save, module = SaveBackbone(), rotation()
    run = trainer(tmp_path, Loses(), save, keeper, enable_checkpointing=True)
    with pytest.warns(StableLightningWarning, match="does not fit the model as it is now"):
        run.fit(module, images())
    assert load_file(save.path).keys() == module.network.state_dict().keys()


def _two(rank):
    torch.manual_seed(rank)
    from tempfile import mkdtemp

    save, module = SaveBackbone(mkdtemp()), rotation()
    run = trainer(mkdtemp(), save, accelerator="cpu", devices=2, strategy="ddp", max_epochs=2)
    run.fit(module, images(), images())
    written = None if save.path is None else load_file(save.path)
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "written": written,
        "loss": float(run.callback_metrics["val/loss"]),
        "accuracy": float(run.callback_metrics["val/accuracy"]),
    }


def test_two_processes_train_as_one_and_the_first_writes(tmp_path):
    first, second = reports_of(_two, tmp_path)
    trained = {n: v for n, v in first["weights"].items() if "running" not in n}
    assert all(torch.equal(value, second["weights"][name]) for name, value in trained.items())
    assert second["written"] is None
    assert all(
        torch.equal(value, first["weights"][f"network.{name}"])
        for name, value in first["written"].items()
    )
    assert first["loss"] == pytest.approx(second["loss"])
    assert first["accuracy"] == second["accuracy"]
