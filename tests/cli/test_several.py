"""Several checkpoints of one recipe predict as one ensemble."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import Calibrate, EstimateUncertainty
from stablelightning.cli.predict import _options
from stablelightning.cli.several import predict_for_all
from stablelightning.errors import CheckpointError, ModelError, StableLightningWarning
from stablelightning.module import StableModule
from stablelightning.nn import MLP


def trainer(*callbacks):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=list(callbacks),
    )  # fmt: skip


def modules(dropout=0.0):
    return [
        StableModule(MLP(4, 3, hidden=[8], dropout=dropout), task="classification")
        for _ in range(3)
    ]


def saved(folder, members):
    for number, module in enumerate(members):
        torch.save({"state_dict": module.state_dict()}, folder / f"{number}.ckpt")
    return [folder / f"{number}.ckpt" for number in range(len(members))]


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_every_checkpoint_counts_the_same(tmp_path):
    members = modules()
    fit = trainer()
    predict_for_all(fit, saved(tmp_path, members))
    (prediction,) = fit.predict(modules()[0], DataLoader(TensorDataset(X), batch_size=6))
    expected = torch.stack([m.eval()(X).softmax(-1) for m in members]).mean(0)
    torch.testing.assert_close(prediction.mean, expected.detach())
    assert (prediction.epistemic > 0).all()


def test_members_with_dropout_are_sampled(tmp_path):
    fit = trainer(EstimateUncertainty(samples=7))
    predict_for_all(fit, saved(tmp_path, modules(dropout=0.5)))
    (prediction,) = fit.predict(modules(0.5)[0], DataLoader(TensorDataset(X), batch_size=6))
    assert prediction.samples_used == 21


def test_a_module_with_a_predict_step_of_its_own(tmp_path):
    class Own(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def predict_step(self, batch, batch_idx):
            return self.layer(batch[0]).softmax(-1)

    members = [Own() for _ in range(3)]
    fit = trainer(EstimateUncertainty(task="classification"))
    predict_for_all(fit, saved(tmp_path, members))
    (prediction,) = fit.predict(Own(), DataLoader(TensorDataset(X), batch_size=6))
    expected = torch.stack([m.layer(X).softmax(-1) for m in members]).mean(0)
    torch.testing.assert_close(prediction.mean, expected.detach())


def test_what_was_calibrated_for_one_is_left_out(tmp_path):
    fit = trainer(EstimateUncertainty(), Calibrate())
    with pytest.warns(StableLightningWarning, match="does not hold for several"):
        predict_for_all(fit, saved(tmp_path, modules()))
    assert not any(isinstance(callback, Calibrate) for callback in fit.callbacks)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    other = StableModule(MLP(4, 5, hidden=[8]), task="classification")
    fit = trainer()
    predict_for_all(fit, saved(tmp_path, [modules()[0], other]))
    with pytest.raises(CheckpointError, match="checkpoint 2 of 2"):
        fit.predict(modules()[0], DataLoader(TensorDataset(X), batch_size=6))


def test_features_have_nothing_in_common(tmp_path):
    members = modules()
    members[0].gives_features = True
    fit = trainer()
    predict_for_all(fit, saved(tmp_path, members))
    with pytest.raises(ModelError, match="name one checkpoint"):
        fit.predict(members[0], DataLoader(TensorDataset(X), batch_size=6))


def test_checkpoints_are_named_one_by_one():
    options, _ = _options().parse_known_args(["run", "--checkpoint", "a", "--checkpoint", "b"])
    assert options.checkpoint == ["a", "b"]
