"""Weights that take an affine map of the channels: held against torch's own norm and fusions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from stablelightning.errors import DataError
from stablelightning.functional.fold import (
    norm_as_affine,
    relative_difference,
    with_scaled_inputs,
    with_scaled_outputs,
)


def settled(channels: int) -> nn.BatchNorm1d:
    """A batch norm with statistics and weights that are not those of the start."""
    norm = nn.BatchNorm1d(channels).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3.0)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return norm_as_affine(
        norm.running_mean, norm.running_var, weight=norm.weight, bias=norm.bias, eps=norm.eps
    )


def test_the_affine_map_is_the_norm():
    norm, x = settled(5), torch.randn(7, 5)
    scale, shift = affine(norm)
    torch.testing.assert_close(x * scale.float() + shift.float(), norm(x))


def test_agrees_with_the_fusions_of_torch_where_those_are_right():
    norm, conv, linear = settled(6), nn.Conv2d(4, 6, 3, groups=2), nn.Linear(4, 6)
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    for layer, fuse in ((conv, fuse_conv_bn_weights), (linear, fuse_linear_bn_weights)):
        expected = fuse(layer.weight, layer.bias, *statistics)
        torch.testing.assert_close(
            with_scaled_outputs(layer.weight, layer.bias, *affine(norm)),
            tuple(e.detach() for e in expected),
        )


@given(
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
)
def test_any_convolution_takes_a_norm_on_either_side(dimensions, transposed, groups, bias, after):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    kernel = 3 if after or not transposed else 1
    layer = kind(4, 8, kernel, groups=groups, bias=bias).double()
    norm = settled(8 if after else 4).double()
    x = torch.randn(2, 4, *[5] * dimensions, dtype=torch.float64)
    expected = norm_nd(norm, layer(x)) if after else layer(norm_nd(norm, x))
    rewrite = with_scaled_outputs if after else with_scaled_inputs
    weight, moved = rewrite(
        layer.weight, layer.bias, *affine(norm), transposed=transposed, groups=groups
    )
    layer.weight.data, layer.bias = weight, nn.Parameter(moved)
    torch.testing.assert_close(layer(x), expected)


def norm_nd(norm: nn.BatchNorm1d, x: torch.Tensor) -> torch.Tensor:
    return norm(x.flatten(2)).view_as(x)


def test_one_number_for_each_channel():
    with pytest.raises(DataError, match="4 output channels"):
        with_scaled_outputs(torch.ones(4, 2), None, torch.ones(3), torch.ones(3))
    with pytest.raises(DataError, match="2 input channels"):
        with_scaled_inputs(torch.ones(4, 2), None, torch.ones(3), torch.ones(3))


def test_the_difference_is_relative_to_the_largest_value():
    a, b = torch.tensor([1.0, -8.0]), torch.tensor([1.5, -10.0])
    assert relative_difference(a, b) == pytest.approx(0.2)
    assert relative_difference(b, b) == 0.0


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.tensor([math.nan, 1.0]), torch.ones(2)),
        (torch.ones(2), torch.tensor([math.inf, 1.0])),
        (torch.tensor([math.inf]), torch.tensor([-math.inf])),
        (torch.ones(1), torch.zeros(1)),
    ],
)
def test_what_is_not_alike_at_all_is_infinitely_far(value, reference):
    assert relative_difference(value, reference) == math.inf


def test_what_is_not_finite_in_both_is_not_compared():
    a, b = torch.tensor([math.nan, math.inf, 1.0]), torch.tensor([math.nan, math.inf, 2.0])
    assert relative_difference(a, b) == 0.5
    assert relative_difference(a[:2], b[:2]) == 0.0
    assert relative_difference(torch.tensor([1]), torch.tensor([2])) == 0.0
