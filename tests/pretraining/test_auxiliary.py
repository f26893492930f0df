"""Rotation and labels of one's own: told from the features, refused in words where they cannot."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn import MLP, ConvNet
from stablelightning.pretraining import AuxiliaryTask, RotationPrediction


def fit(module, *tensors, epochs=1):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(*tensors), batch_size=32, shuffle=True)
    run = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=epochs,
        devices=1,
    )
    run.fit(module, data, DataLoader(TensorDataset(*tensors), batch_size=50))
    return run


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


class TestRotation:
    def test_images_with_an_up_are_told(self):
        torch.manual_seed(0)
        images = torch.randn(64, 1, 6, 6) * 0.1
        images[:, :, :2] += 1  # bright above
        module = RotationPrediction(MLP(36, 2, hidden=[16], dropout=0.0), optimizer=adam)
        run = fit(module, images, epochs=10)
        assert run.callback_metrics["val/accuracy"] > 0.95

    def test_what_has_no_up_stays_at_chance(self):
        module = RotationPrediction(MLP(16, 2, hidden=[8], dropout=0.0), optimizer=adam)
        run = fit(module, torch.ones(64, 1, 4, 4), epochs=2)
        assert run.callback_metrics["val/accuracy"] == pytest.approx(0.25)
        assert run.callback_metrics["val/loss"] == pytest.approx(1.3863, abs=0.02)

    @pytest.mark.parametrize("shape", [(6,), (5, 2), (1, 4, 6)], ids=["rows", "sequence", "wide"])
    def test_what_cannot_be_turned_ends_before_the_first_step(self, shape):
        module = RotationPrediction(MLP(torch.Size(shape).numel(), 2, hidden=[4]))
        with pytest.raises(DataError, match="rotation needs") as told:
            fit(module, torch.randn(8, *shape))
        assert "\n" not in str(told.value)
        assert module.trainer.global_step == 0

    def test_the_picture_says_what_was_told(self):
        module = RotationPrediction(ConvNet(3, 2, channels=[8]))
        images = torch.randn(3, 3, 8, 8)
        module.ready(images)
        with torch.no_grad():
            figure = module.picture(images)
        assert len(figure.axes) == 12
        assert {axes.get_title() for axes in figure.axes} <= {"0°", "90°", "180°", "270°"}

    def test_images_of_two_channels_have_no_picture(self):
        module = RotationPrediction(ConvNet(2, 2, channels=[8]))
        images = torch.randn(3, 2, 8, 8)
        module.ready(images)
        with torch.no_grad():
            assert module.picture(images) is None


class TestAuxiliary:
    def test_labels_from_a_function_are_learned(self):
        def larger_half(batch):
            left, right = batch[0].chunk(2, 1)
            return batch[0], (left.sum(1) > right.sum(1)).long()

        module = AuxiliaryTask(
            MLP(6, 3, hidden=[16], dropout=0.0), num_labels=2, labels=larger_half, optimizer=adam
        )
        run = fit(module, torch.randn(256, 6), torch.zeros(256), epochs=8)
        assert run.callback_metrics["val/accuracy"] > 0.9

    def test_a_function_may_give_other_rows_than_the_batch_has(self):
        def both_signs(batch):
            rows = torch.cat([batch, -batch])
            return rows, (torch.arange(len(rows)) >= len(batch)).long()

        module = AuxiliaryTask(MLP(6, 3), num_labels=2, labels=both_signs)
        assert torch.isfinite(module.loss(torch.randn(5, 6)))

    def test_labels_at_a_place_or_under_a_key(self):
        inputs, labels = torch.randn(5, 6), torch.arange(5) % 3
        torch.manual_seed(0)
        module = AuxiliaryTask(MLP(6, 3, dropout=0.0), num_labels=3, key=2)
        first = module.loss((inputs, torch.zeros(5), labels))
        module.key = "camera"
        assert torch.equal(module.loss({"inputs": inputs, "camera": labels}), first)

    def test_numbers_are_predicted_too(self):
        module = AuxiliaryTask(
            MLP(6, 3, hidden=[16], dropout=0.0),
            num_labels=2,
            task="regression",
            key=1,
            optimizer=adam,
        )
        inputs = torch.randn(256, 6)
        run = fit(module, inputs, inputs[:, :2] * 2, epochs=20)
        assert run.callback_metrics["val/rmse"] < 0.6
        assert "val/mae" in run.callback_metrics

    def test_several_labels_at_once(self):
        module = AuxiliaryTask(MLP(6, 3), num_labels=2, task="multilabel", key=1)
        inputs = torch.randn(64, 6)
        run = fit(module, inputs, (inputs[:, :2] > 0).long())
        assert 0 <= run.callback_metrics["val/f1"] <= 1

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"num_labels": 2}, "exactly one, got neither"),
            ({"num_labels": 2, "labels": len, "key": 1}, "exactly one, got both"),
            ({"num_labels": 1, "key": 1}, "num_labels must be a whole number >= 2"),
            ({"num_labels": 0, "key": 1, "task": "regression"}, "num_labels must be"),
            ({"num_labels": 2, "key": 1, "task": "ranking"}, "task must be one of"),
        ],
    )
    def test_a_bad_setting_is_refused(self, settings, match):
        with pytest.raises(RecipeError, match=match):
            AuxiliaryTask(MLP(6, 3), **settings)

    @pytest.mark.parametrize(
        ("key", "batch", "match"),
        [
            (3, (torch.zeros(2, 6), torch.zeros(2)), "got 3 and 2 entries"),
            ("hour", {"x": torch.zeros(2, 6)}, "got 'hour' and the keys x"),
            (1, (torch.zeros(2, 6), torch.zeros(3)), "a row for each of the 2 inputs"),
            (1, (torch.zeros(2, 6), torch.tensor([0, 7])), "below num_labels, 2, got 7"),
            (1, (torch.zeros(2, 6), ["a", "b"]), "labels must be a tensor"),
        ],
    )
    def test_labels_that_are_not_there_are_told(self, key, batch, match):
        with pytest.raises(DataError, match=match):
            AuxiliaryTask(MLP(6, 3), num_labels=2, key=key).loss(batch)

    def test_a_function_that_gives_no_pair_is_told(self):
        module = AuxiliaryTask(MLP(6, 3), num_labels=2, labels=lambda batch: batch)
        with pytest.raises(DataError, match="must return a pair"):
            module.loss(torch.zeros(2, 6))


def test_tokens_and_maps_are_pooled_to_the_width_of_the_readout():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 5)

        def forward(self, x):
            return self.layer(x)

    module = AuxiliaryTask(Tokens(), num_labels=2, key=1, keep_head=True)
    module.loss((torch.randn(3, 7, 2), torch.tensor([0, 1, 1])))
    assert module.readout.in_features == 5
