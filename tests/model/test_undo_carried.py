"""Small containers and plain tensors of a module, which a bad batch must not stay in."""

from collections import deque

import torch
from torch import nn

from stablelightning.model.undo import ForwardUndo


class Carries(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.ones(())
        self.means = {"loss": torch.ones(()), "steps": 0}
        self.latest = deque([1.0], maxlen=2)
        self.history = [0.0] * 1000
        self.settings = {"name": "unchanged", "layers": [nn.Linear(1, 1)]}

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x)
        self.means["loss"].add_(x)
        self.means["steps"] += 1
        self.latest.append(float(x))
        self.history.append(float(x))


def test_what_is_small_is_given_back_in_place_and_histories_are_left():
    model = Carries()
    held = (model.mean, model.means, model.latest, model.settings)
    undo = ForwardUndo(model)
    undo.take()
    for _ in range(3):
        model(torch.tensor(float("nan")))
    undo.restore()
    assert held == (model.mean, model.means, model.latest, model.settings)
    assert all(a is b for a, b in zip(held, vars_of(model), strict=True))
    assert model.mean == 1
    assert model.means == {"loss": torch.ones(()), "steps": 0}
    assert (model.latest, model.latest.maxlen) == (deque([1.0]), 2)
    assert len(model.history) == 1003


def vars_of(model):
    return model.mean, model.means, model.latest, model.settings
