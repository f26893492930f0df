"""Recurrent layers and who clips their gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.model.findings.networks import find

CODE = "recurrent-without-clipping"


class Reader(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.recurrent, self.head = kind(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


def batch():
    return torch.randn(32, 12, 8), torch.randint(10, (32,))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_nobody_said_is_a_remark_and_no_is_a_warning(kind):
    model = Reader(kind)
    assert find(CODE, model, batch()).severity == "info"
    assert find(CODE, model, batch(), clipped=False).severity == "warning"
    assert find(CODE, model, batch(), clipped=True) is None


@pytest.mark.parametrize(
    ("trainer", "severity"),
    [
        (SimpleNamespace(gradient_clip_val=1.0, callbacks=[]), None),
        (SimpleNamespace(gradient_clip_val=None, callbacks=[]), "warning"),
    ],
)
def test_an_attached_trainer_is_asked(trainer, severity):
    model = Reader()
    vars(model)["_trainer"] = trainer
    found = find(CODE, model, batch())
    assert (found and found.severity) == severity


def test_a_model_that_is_one_recurrent_layer_is_called_the_model():
    found = find(
        "recurrent-without-clipping", nn.LSTM(8, 16, batch_first=True), torch.randn(4, 6, 8)
    )
    assert found.message.startswith("the gradients of the model may not be clipped")
