"""The first number that is not finite: its module and its operation."""

import math

import pytest
import torch
from torch import nn

from tests.model.findings.networks import find, findings, stack, table


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight(value):
    model = stack()
    model[4].weight.data[3, 5] = value
    first = findings(model)[0]
    assert (first.code, first.module) == ("non-finite", "4")
    assert "4.weight" in first.message


def test_an_infinity_that_a_relu_hides():
    model = stack(between=nn.BatchNorm1d)
    model[4].bias.data[0] = -math.inf
    assert find("non-finite", model).module == "4"


def test_a_batch():
    inputs, target = table()
    inputs[5, 3] = math.nan
    found = find("non-finite", stack(), (inputs, target))
    assert found.module == ""
    assert "batch itself" in found.message


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (torch.log, "log"),
        (lambda x: (100 * x.abs() + 100).exp(), "exp"),
        (lambda x: x / (x - x), "div"),
    ],
)
def test_an_operation_of_the_forward(function, operation):
    layers = stack(2)
    model = nn.Sequential(*layers[:4], Call(function), *layers[4:])
    found = findings(model)[0]
    assert (found.code, found.module) == ("non-finite", "4")
    assert f"made by {operation}" in found.message


def test_an_operation_of_the_backward():
    layers = stack(2)
    model = nn.Sequential(layers[0], Call(lambda x: (x - x).sqrt()), *layers[1:])
    found = findings(model)[0]
    assert (found.code, found.module) == ("non-finite", "1")
    assert "backward of sqrt" in found.message


def test_masks_of_minus_infinity_are_meant():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            return self.head(self.layer(x, src_mask=self.mask)[:, -1])

    batch = torch.randn(32, 6, 16), torch.randint(10, (32,))
    assert find("non-finite", Attention(), batch) is None
