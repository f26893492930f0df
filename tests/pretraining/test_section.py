"""What a run shows of a pretraining module."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import SaveBackbone
from stablelightning.module import StableModule
from stablelightning.nn import MLP, ConvNet
from stablelightning.pretraining import DenoisingAutoencoder, RotationPrediction
from stablelightning.pretraining.section import pretraining_of_run


def run_of(module, inputs, folder, *callbacks, test=True):
    loader = DataLoader(TensorDataset(inputs), batch_size=6)
    run = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        max_epochs=1,
        devices=1,
    )
    run.fit(module, loader, loader)
    if test:
        run.test(module, loader, verbose=False)
    return run


def test_losses_of_training_and_test_stand_side_by_side(tmp_path):
    module = DenoisingAutoencoder(MLP(6, 2, hidden=[4]))
    run = run_of(module, torch.randn(12, 6), tmp_path, SaveBackbone())
    section = pretraining_of_run(run, module)
    assert [row[0] for row in section.rows] == ["loss", "explained variance"]
    assert all(number is not None for number in section.rows[0][1:])
    assert section.rows[1][1] is None  # in training there are no metrics
    assert {"train/loss", "val/loss", "test/loss"} <= set(section.numbers)
    assert not any(name.endswith("_epoch") for name in section.numbers)
    assert str(tmp_path / "backbone.safetensors") in section.notes[0]
    assert section.figure is not None


def test_a_picture_leaves_module_and_generators_as_they_were(tmp_path):
    module = RotationPrediction(ConvNet(1, 2, channels=[4]))
    run = run_of(module, torch.randn(12, 1, 8, 8), tmp_path, test=False)
    module.train()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    before = torch.get_rng_state()
    section = pretraining_of_run(run, module)
    assert module.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert [row[0] for row in section.rows] == ["loss", "accuracy"]
    assert section.notes == []


def test_a_module_of_another_kind_has_no_section(tmp_path):
    assert pretraining_of_run(None, StableModule(MLP(2, 2), task="classification")) is None
