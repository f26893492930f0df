"""Depth without a way around, saturating stacks, self-normalization, mixed activations."""

import pytest
import torch
from torch import nn

from tests.model.findings.networks import find, stack, table


def test_plain_depth_begins_beyond_twenty_layers():
    assert find("plain-depth", stack(18)) is None
    found = find("plain-depth", stack(30, gain=1.0))
    assert found.severity == "warning"
    assert found.cure == "add-skips"
    assert found.evidence["plain_depth"] == 31


def test_norms_and_skips_end_a_plain_stretch():
    assert find("plain-depth", stack(30, between=nn.BatchNorm1d)) is None


def test_a_level_profile_makes_it_a_remark():
    model = nn.Sequential(
        *(m for _ in range(30) for m in (nn.Linear(20, 20, bias=False), nn.Tanh()))
    )
    for layer in model[::2]:
        nn.init.orthogonal_(layer.weight)
    found = find("plain-depth", model, 0.05 * torch.randn(64, 20))
    assert (found.severity, found.cure) == ("info", "add-skips")


@pytest.mark.parametrize(("depth", "severity"), [(4, "warning"), (8, "error"), (15, "error")])
def test_sigmoids_in_a_row(depth, severity):
    found = find("saturating-depth", stack(depth, activation=nn.Sigmoid, gain=1.0))
    assert found.severity == severity
    assert found.evidence["bound"] == pytest.approx(0.25**depth)


def test_tanh_has_slope_one_and_may_be_deep():
    assert find("saturating-depth", stack(15, activation=nn.Tanh, gain=1.0)) is None


class SkippedSelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(4))
        self.head = nn.Linear(20, 10)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=20**-0.5)

    def forward(self, x):
        for layer in self.layers:
            x = x + nn.functional.selu(layer(x))
        return self.head(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: stack(6, activation=nn.SELU, gain=2**0.5), "gain"),
        (lambda: stack(6, activation=nn.SELU, gain=3**-0.5), "gain"),
        (lambda: stack(6, activation=nn.SELU, gain=1.0, between=nn.BatchNorm1d), "norms"),
        (lambda: stack(6, activation=nn.SELU, gain=1.0, between=lambda _: nn.Dropout()), "dropout"),
        (SkippedSelu, "skips"),
    ],
    ids=["He", "torch default", "batch norm", "dropout", "skips"],
)
def test_what_breaks_self_normalization(make, reason):
    found = find("self-normalization-broken", make())
    assert reason in found.evidence


def test_an_input_off_the_fixed_point_breaks_it():
    inputs, target = table()
    model = stack(6, activation=nn.SELU, gain=1.0)
    found = find("self-normalization-broken", model, (10 * inputs, target))
    assert found.evidence["input_std"] > 5


@pytest.mark.parametrize("between", [None, lambda _: nn.AlphaDropout(0.1)])
def test_selu_as_it_is_meant(between):
    model = stack(30, 64, nn.SELU, gain=1.0, between=between)
    assert find("self-normalization-broken", model) is None
    assert find("plain-depth", model) is None


def test_mixed_activations_are_a_remark_about_the_rarer_one():
    model = stack(4)
    model[5] = nn.Tanh()
    found = find("mixed-activations", model)
    assert (found.severity, found.module) == ("info", "4")
    assert found.evidence["relu"] == 3
