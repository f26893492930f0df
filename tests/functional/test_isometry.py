import math

import pytest
import torch
import torch.nn.functional as F

from stablelightning.errors import ModelError
from stablelightning.functional.gains import forward_gain
from stablelightning.functional.isometry import (
    is_even,
    is_odd,
    isometric_gain,
    mirrored,
    nonlinear_share,
    working_size,
)


@pytest.mark.parametrize(
    ("function", "slope"),
    [(torch.relu, 1.0), (lambda x: F.leaky_relu(x, 0.2), 1.2), (F.gelu, 1.0), (F.silu, 1.0)],
)
def test_mirrored_pairs_of_relu_like_functions_are_straight(function, slope):
    pair = mirrored(function)
    assert nonlinear_share(pair) == pytest.approx(0.0, abs=1e-12)
    assert isometric_gain(pair) == pytest.approx(1 / slope)
    assert isometric_gain(pair, 0.5) == pytest.approx(2 / slope)
    assert working_size([pair] * 500) == 1.0


@pytest.mark.parametrize("function", [F.selu, F.elu, F.mish, torch.tanh])
def test_smooth_functions_are_straighter_for_a_smaller_signal(function):
    shares = [nonlinear_share(mirrored(function), size) for size in (1.0, 0.5, 0.25, 0.125)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.1 * shares[0]


def test_deeper_stacks_work_with_smaller_signals():
    sizes = [working_size([mirrored(F.selu)] * depth) for depth in (2, 30, 100, 10_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 1.0
    assert sizes[-1] == 1 / 16


def test_gains_at_unit_size_are_those_of_the_function():
    assert isometric_gain(torch.tanh) == pytest.approx(forward_gain(torch.tanh))
    with pytest.raises(ModelError, match="hands something on"):
        isometric_gain(mirrored(torch.abs))


def test_a_constant_is_not_straight():
    assert nonlinear_share(torch.ones_like) == 1.0
    assert nonlinear_share(torch.zeros_like) == 1.0
    assert math.isclose(nonlinear_share(torch.abs), 1.0)


def test_odd_and_even():
    assert all(map(is_odd, (torch.tanh, torch.sin, F.softsign, lambda x: 4 * torch.sigmoid(x) - 2)))
    assert not any(map(is_odd, (torch.sigmoid, torch.relu, F.selu, torch.cos)))
    assert is_even(torch.cos)
    assert not is_even(torch.relu)
