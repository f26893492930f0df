"""The scaled sigmoid against tanh, maxout and its gain against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stablelightning.errors import RecipeError
from stablelightning.functional.activations import maxout, maxout_gain, scaled_sigmoid


def test_scaled_sigmoid_has_slope_one_at_the_origin_and_is_odd():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    y = scaled_sigmoid(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope[12].item() == 1.0
    assert y[12].item() == 0.0
    assert torch.allclose(y, -y.flip(0))
    assert torch.allclose(y, 2 * torch.tanh(x / 2))


@given(st.integers(2, 5), st.integers(1, 4), st.integers(-3, 2))
def test_maxout_is_the_largest_of_neighbours(pieces, units, dim):
    shape = [3, 4, 5]
    shape[dim] = units * pieces
    x = torch.randn(shape)
    result = maxout(x, pieces, dim=dim)
    moved = x.movedim(dim, -1).reshape(-1, units, pieces)
    assert torch.equal(result.movedim(dim, -1).reshape(-1, units), moved.max(-1).values)


@pytest.mark.parametrize("pieces", [0, 1, -2, 2.0, True])
def test_pieces_must_be_a_number_from_two_on(pieces):
    with pytest.raises(RecipeError, match="pieces must be a whole number >= 2"):
        maxout(torch.zeros(4), pieces)


def test_pieces_must_divide_the_dimension():
    with pytest.raises(RecipeError, match="multiple of pieces=2 along dimension -1, got 5"):
        maxout(torch.zeros(5), 2)


@pytest.mark.parametrize(
    ("pieces", "mean_square"),
    # In closed form: E max^2 is 1 for two, 1 + sqrt(3) / (2 pi) for three, 1 + sqrt(3) / pi for 4.
    [(2, 1.0), (3, 1 + math.sqrt(3) / (2 * math.pi)), (4, 1 + math.sqrt(3) / math.pi)],
)
def test_gain_against_closed_forms(pieces, mean_square):
    assert maxout_gain(pieces) == pytest.approx(1 / math.sqrt(mean_square), abs=1e-12)
