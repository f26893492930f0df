"""Statistics of sampled tensors, against the whole of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stablelightning.model.observe import (
    SAMPLE_SIZE,
    function_shape,
    observe,
    observe_activation,
    sample,
    unit_dimension,
)


@pytest.mark.parametrize(
    ("shape", "dimension"),
    [((4096, 300), 1), ((64, 32, 64, 64), 1), ((32, 500, 128), 2), ((2, 8, 700, 700), 1)],
)
def test_a_sample_keeps_every_unit_and_bounds_the_size(shape, dimension):
    part = sample(torch.zeros(1).expand(shape), dimension)
    assert part.shape[dimension] == shape[dimension]
    assert part.numel() <= 2 * SAMPLE_SIZE
    assert part.shape[0] >= min(shape[0], 2)


def test_small_tensors_are_taken_whole():
    values = torch.randn(10, 5)
    assert torch.equal(sample(values, 1), values)


def test_a_sampled_tensor_has_the_statistics_of_the_whole():
    values = torch.randn(256, 64, 16, 16) * 3 + torch.randn(1, 64, 1, 1)
    signal = observe(values, dimension=1, examples=256)
    assert signal.std == pytest.approx(3, rel=0.01)
    assert signal.mean == pytest.approx(values.mean().item(), abs=0.03)
    assert signal.rows == 256 * 256
    assert signal.units == 64


@pytest.mark.parametrize(
    "arranged",
    [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x.reshape(-1, x.shape[-1])],
    ids=["batch first", "time first", "folded"],
)
def test_cosines_are_between_examples_wherever_they_are(arranged):
    values = torch.randn(6, 1, 8).expand(6, 4, 8) + 0.01 * torch.randn(6, 4, 8)
    flat = values.reshape(6, -1)
    pairs = F.cosine_similarity(flat[:, None], flat[None], dim=-1)
    expected = ((pairs.sum() - 6) / 30).item()
    arranged_values = arranged(values)
    signal = observe(arranged_values, dimension=arranged_values.ndim - 1, examples=6)
    assert signal.cosine == pytest.approx(expected, abs=1e-4)


def test_one_example_has_no_cosine():
    signal = observe(torch.randn(1, 5), dimension=1, examples=1)
    assert signal.cosine != signal.cosine
    assert signal.std == 0


@pytest.mark.parametrize(
    ("function", "largest", "sides", "bounded"),
    [
        (torch.relu, 1, 1, False),
        (F.leaky_relu, 1, 0, False),
        (F.relu6, 1, 2, False),
        (torch.sigmoid, 0.25, 2, True),
        (torch.tanh, 1, 2, True),
        (F.hardtanh, 1, 2, True),
        (F.gelu, 1.13, 1, False),
        (F.softplus, 0.98, 1, False),
        (torch.exp, 54.6, 1, False),
        (torch.zeros_like, 1, 0, False),
    ],
)
def test_shapes_of_functions(function, largest, sides, bounded):
    shape = function_shape(function)
    assert shape.largest == pytest.approx(largest, rel=0.02)
    assert (shape.flat_sides, shape.bounded) == (sides, bounded)


def test_functions_with_weights_of_their_own_are_observed():
    slopes = torch.full((8,), 0.25)
    values = torch.randn(64, 8)
    signal = observe_activation("prelu", lambda x: F.prelu(x, slopes), values, 1)
    assert signal.dead == 0
    assert 0.25 < signal.slope < 1


@pytest.mark.parametrize(
    ("shape", "module", "units", "expected"),
    [
        ((4, 8), nn.Linear(1, 8), 8, 1),
        ((4, 5, 8), nn.Linear(1, 8), 8, 2),
        ((4, 8, 9, 9), nn.Conv2d(1, 8, 1), 8, 1),
        ((4, 9, 9, 8), nn.Linear(1, 8), 8, 3),
        ((4, 8, 9, 9), None, None, 1),
        ((4, 7, 7, 8), nn.Conv2d(1, 8, 1), 8, 3),
    ],
)
def test_where_the_units_are(shape, module, units, expected):
    assert unit_dimension(shape, module, units) == expected
