"""A race among activations, on a deep plain network and scikit-learn's digits."""

import torch
from _digits import digits
from matplotlib.figure import Figure
from torch import nn

import stablelightning as sl
from stablelightning.model.activation_selection import (
    RaceData,
    RaceSettings,
    select_activation,
)
from stablelightning.model.race import PlainContestant
from stablelightning.report.activation import race_figure

_CANDIDATES = ("sigmoid", "relu", "leaky_relu(0.2)", "elu", "selu", "tanh", "gelu")
_DEPTH, _WIDTH = 12, 64


def draw() -> Figure:
    """Twelve layers of sigmoids are what somebody wrote; what would be better?"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batches = list(digits().train_dataloader())
        data = RaceData(batches[:-2], batches[-3:-1])
        settings = RaceSettings(steps=60, seeds=2, finalists=5)
        ranking = select_activation(_build, _CANDIDATES, data, settings)
    return race_figure(ranking.to_dict())


def _build(name: str) -> PlainContestant:
    layers = [nn.Linear(64, _WIDTH), nn.Sigmoid()]
    for _ in range(_DEPTH - 2):
        layers += [nn.Linear(_WIDTH, _WIDTH), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.Linear(_WIDTH, 8))
    sl.swap_activations(net, name)
    sl.initialize(net, next(iter(digits().train_dataloader()))[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    return PlainContestant(net, nn.CrossEntropyLoss(), optimizer)
