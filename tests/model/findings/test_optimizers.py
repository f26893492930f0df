"""The optimizer's rate, tried once, its momentum, and what it decays."""

import pytest
import torch
from torch import nn

from tests.model.findings.networks import find, stack, table

CODE = "learning-rate-too-high"


def adam(model, rate):
    return {"optimizer": torch.optim.Adam(model.parameters(), lr=rate)}


def blobs(rows=64, columns=64):
    """Ten classes that can be told apart, as digits can."""
    target = torch.randint(10, (rows,))
    centres = torch.randn(10, columns, generator=torch.Generator().manual_seed(3))
    return (centres[target] + 0.7 * torch.randn(rows, columns)) / 1.22, target


def test_deep_selu_at_a_thousandth_is_told_that_the_rate_is_at_fault():
    model = stack(45, 100, nn.SELU, gain=1.0, inputs=64)
    assert find(CODE, model, blobs(), **adam(model, 1e-3)) is not None
    assert find(CODE, model, blobs(), **adam(model, 1e-4)) is None


@pytest.mark.parametrize("depth", [2, 6])
def test_ordinary_depths_bear_it(depth):
    model = stack(depth, 128, inputs=64)
    assert find(CODE, model, blobs(), **adam(model, 1e-3)) is None


def test_a_rate_that_throws_the_loss_out_is_an_error():
    model = stack(4, 128, inputs=64)
    found = find(CODE, model, blobs(), **adam(model, 0.1))
    assert found.severity == "error"
    assert found.evidence["loss_after"] > found.evidence["loss_before"]
    sgd = torch.optim.SGD(model.parameters(), lr=100.0)
    assert find(CODE, model, blobs(), optimizer=sgd).severity == "error"


def test_without_an_optimizer_nothing_is_tried():
    assert find(CODE, stack(45, 100, nn.SELU, gain=1.0, inputs=64), blobs()) is None


@pytest.mark.parametrize(("momentum", "severity"), [(0.99999, "error"), (0.998, "warning")])
def test_momentum_that_remembers_too_long(momentum, severity):
    model = stack()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=momentum)
    found = find("extreme-momentum", model, optimizer=sgd)
    assert found.severity == severity
    assert found.evidence["steps"] == pytest.approx(1 / (1 - momentum))
    betas = torch.optim.Adam(model.parameters(), betas=(momentum, 0.999))
    assert find("extreme-momentum", model, optimizer=betas).severity == severity


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_usual_momentum(momentum):
    model = stack()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=momentum)
    assert find("extreme-momentum", model, optimizer=sgd) is None


def test_decayed_prelu():
    model = stack(activation=nn.PReLU)
    decayed = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    found = find("decayed-prelu", model, optimizer=decayed)
    assert found.modules == ("1", "3", "5", "7")
    slopes = [m.weight for m in model if isinstance(m, nn.PReLU)]
    others = [p for p in model.parameters() if not any(p is s for s in slopes)]
    groups = [{"params": others}, {"params": slopes, "weight_decay": 0.0}]
    spared = torch.optim.AdamW(groups, weight_decay=0.1)
    assert find("decayed-prelu", model, table(), optimizer=spared) is None
