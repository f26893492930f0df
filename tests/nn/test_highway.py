"""The highway block: its mixture, and the constant that carries the input at the start."""

import math

import pytest
import torch
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.nn import HighwayBlock


def test_a_highway_mixes_by_its_gate() -> None:
    block, rows = HighwayBlock(8, activation=nn.Tanh, carry_bias=1.5), torch.randn(5, 8)
    assert (block.gate.bias == -1.5).all()
    gate = block.gate(rows).sigmoid()
    expected = gate * block.linear(rows).tanh() + (1 - gate) * rows
    torch.testing.assert_close(block(rows), expected)


@pytest.mark.parametrize(("carry_bias", "nearest"), [(40.0, "input"), (-40.0, "transformation")])
def test_the_carry_bias_closes_and_opens_a_highway(carry_bias: float, nearest: str) -> None:
    block, rows = HighwayBlock(8, carry_bias=carry_bias), torch.randn(5, 8)
    expected = rows if nearest == "input" else block.activation(block.linear(rows))
    torch.testing.assert_close(block(rows), expected)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="features must be >= 1, got 0"):
        HighwayBlock(0)
    with pytest.raises(RecipeError, match="carry_bias must be finite"):
        HighwayBlock(4, carry_bias=math.inf)
