"""Settings that hurt are told, and those that people use are not."""

import pytest
import torch
from torch import nn

from stablelightning.model.muon import MuonAdamW
from stablelightning.model.optimizer_settings import harmful_settings


def network(layers: int = 3, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers))).to(dtype)


def codes(make, model: nn.Module | None = None, **settings) -> dict[str, str]:
    model = model or network()
    optimizer = make(model.parameters(), **{"lr": 1e-3, **settings})
    return {found.code: found.severity for found in harmful_settings(optimizer, model)}


OPTIMIZERS = ["SGD", "Adagrad", "RMSprop", "Adam", "Adamax", "NAdam", "AdamW", "RAdam", "Rprop"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_defaults_are_all_right(name):
    assert codes(getattr(torch.optim, name)) == {}


def test_the_defaults_of_muon_are_all_right():
    assert codes(MuonAdamW) == {}


@pytest.mark.parametrize(
    ("make", "settings", "expected"),
    [
        (torch.optim.SGD, {"momentum": 0.99999}, {"extreme-momentum": "error"}),
        (torch.optim.SGD, {"momentum": 0.998}, {"extreme-momentum": "warning"}),
        (torch.optim.SGD, {"momentum": 0.99, "nesterov": True}, {}),
        (torch.optim.SGD, {"momentum": 1.0}, {"extreme-momentum": "error"}),
        (
            torch.optim.Adam,
            {"betas": (0.999, 0.9)},
            {"extreme-momentum": "warning", "adam-betas": "warning"},
        ),
        (torch.optim.Adam, {"betas": (0.95, 0.9)}, {"adam-betas": "warning"}),
        (torch.optim.Adam, {"betas": (0.9, 0.95)}, {}),
        (torch.optim.Adam, {"betas": (0.0, 0.0)}, {}),
        (torch.optim.Adam, {"eps": 0.0}, {"adam-epsilon": "error"}),
        (torch.optim.Adam, {"eps": 1.0}, {"adam-epsilon": "warning"}),
        (torch.optim.RMSprop, {"eps": 1e-3}, {}),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 10.0}, {"decay-beyond-zero": "error"}),
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 10.0}, {}),
    ],
)
def test_settings(make, settings, expected):
    assert codes(make, **settings) == expected


def test_the_default_epsilon_is_nothing_in_half_precision():
    assert codes(torch.optim.Adam, network(dtype=torch.float16)) == {"adam-epsilon": "warning"}
    assert codes(torch.optim.Adam, network(dtype=torch.float16), eps=1e-4) == {}
    assert codes(torch.optim.Adam, network(dtype=torch.bfloat16)) == {}


def test_an_epsilon_of_zero_does_give_nan():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight], eps=0.0).step()
    assert weight.isnan().all()


def test_a_decay_beyond_zero_does_turn_signs():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], lr=0.1, weight_decay=15.0).step()
    assert weight < 0


def test_adagrad_is_told_of_on_deep_networks_only():
    assert codes(torch.optim.Adagrad, network(10)) == {}
    assert codes(torch.optim.Adagrad, network(11)) == {"adagrad-on-deep-net": "warning"}
    assert codes(torch.optim.Adam, network(40)) == {}


def test_the_worst_group_counts():
    first, second = network(1), network(1)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "momentum": 0.99999}]
    (found,) = harmful_settings(torch.optim.SGD(groups, lr=0.1, momentum=0.9), first)
    assert found.evidence["momentum"] == 0.99999
    assert "\n" not in found.message + found.remedy
