"""The layers of our own: what they compute, what they cost, and that scale survives depth."""

import pytest
import torch
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.nn import (
    Maxout,
    MaxoutConv1d,
    MaxoutConv2d,
    MaxoutConv3d,
    MaxoutLinear,
    ScaledSigmoid,
)

PLAIN = {MaxoutConv1d: nn.Conv1d, MaxoutConv2d: nn.Conv2d, MaxoutConv3d: nn.Conv3d}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_scaled_sigmoid_passes_gradients_on_at_the_origin():
    x = torch.zeros(3, requires_grad=True)
    ScaledSigmoid()(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("pieces", [2, 3])
def test_linear_is_the_largest_of_plain_layers(pieces):
    layer = MaxoutLinear(6, 5, pieces)
    weight, bias = (t.unflatten(0, (5, pieces)) for t in (layer.layer.weight, layer.layer.bias))
    x = torch.randn(7, 6)
    plain = [nn.functional.linear(x, weight[:, i], bias[:, i]) for i in range(pieces)]
    assert torch.allclose(layer(x), torch.stack(plain).amax(0))


@pytest.mark.parametrize("kind", PLAIN)
def test_convolution_has_the_shape_of_the_plain_one_and_says_what_it_costs(kind):
    dims = len(kind(2, 4, 3).layer.kernel_size)
    settings = {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2}
    layer, plain = kind(2, 4, pieces=3, **settings), PLAIN[kind](2, 4, **settings)
    x = torch.randn(2, 2, *[8] * dims)
    assert layer(x).shape == plain(x).shape
    assert layer(x[0]).shape == plain(x[0]).shape
    assert count(layer) == 3 * count(plain)
    assert f"parameters={count(layer)} (3x" in repr(layer)


def test_grouped_convolution_keeps_the_pieces_of_a_channel_in_its_group():
    layer = MaxoutConv2d(2, 2, 1, groups=2, bias=False)
    x = torch.randn(1, 2, 3, 3)
    other = x.clone()
    other[:, 1] += 1
    assert torch.equal(layer(x)[:, 0], layer(other)[:, 0])


@pytest.mark.parametrize("pieces", [2, 4])
def test_the_mean_square_survives_thirty_layers(pieces):
    net = nn.Sequential(*[MaxoutLinear(256, 256, pieces) for _ in range(30)])
    with torch.no_grad():
        x = torch.randn(64, 256)
        ratio = net(x).square().mean() / x.square().mean()
    assert 0.1 < ratio < 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaxoutLinear(0, 3),
        lambda: MaxoutLinear(3, 0),
        lambda: MaxoutLinear(3, 3, 1),
        lambda: MaxoutConv2d(3, -1, 3),
    ],
)
def test_numbers_out_of_range(make):
    with pytest.raises(RecipeError, match="must be"):
        make()


def test_state_loads_strictly_and_survives_a_copy():
    layer = MaxoutLinear(3, 2)
    twin = MaxoutLinear(3, 2)
    twin.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(4, 3)
    assert torch.equal(layer(x), twin(x))
    assert isinstance(twin, Maxout)
