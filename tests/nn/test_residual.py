"""Residual blocks: the identity at the start, projections, and that they wake up."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stablelightning.errors import RecipeError
from stablelightning.nn import (
    ConvBottleneckBlock,
    ConvPreActivationBlock,
    ConvResidualBlock,
    DensePreActivationBlock,
    DenseResidualBlock,
    ScaledResidual,
)

DENSE = (DenseResidualBlock, DensePreActivationBlock)
CONV = (ConvResidualBlock, ConvPreActivationBlock, ConvBottleneckBlock)
POST_ACTIVATION = (DenseResidualBlock, ConvResidualBlock, ConvBottleneckBlock)
PRE_ACTIVATION = (DensePreActivationBlock, ConvPreActivationBlock)


def inputs_for(kind: type[nn.Module], channels: int = 8) -> torch.Tensor:
    return torch.randn(16, channels) if kind in DENSE else torch.randn(4, channels, 6, 6)


def scaled(width: int = 8) -> ScaledResidual:
    layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return ScaledResidual(nn.Sequential(*layers))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("kind", PRE_ACTIVATION)
def test_pre_activation_blocks_start_as_the_identity(kind, activation, training) -> None:
    block, inputs = kind(8, activation=activation).train(training), inputs_for(kind)
    assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("kind", POST_ACTIVATION)
def test_post_activation_blocks_start_as_their_activation(kind, activation, training) -> None:
    block, inputs = kind(8, activation=activation).train(training), inputs_for(kind)
    assert torch.equal(block(inputs), activation()(inputs))


@settings(deadline=None)
@given(
    width=st.integers(1, 12),
    rows=st.integers(1, 5),
    magnitude=st.floats(-1e6, 1e6, allow_subnormal=False),
)
def test_a_scaled_residual_starts_as_the_identity_at_any_size(width, rows, magnitude) -> None:
    inputs = magnitude * torch.ones(rows, width)
    assert torch.equal(scaled(width)(inputs), inputs)


@pytest.mark.parametrize("kind", [*DENSE, *CONV])
def test_every_parameter_learns_within_three_steps(kind: type[nn.Module]) -> None:
    check_all_parameters_move(kind(8), inputs_for(kind))


def test_a_scaled_residual_learns_within_three_steps() -> None:
    check_all_parameters_move(scaled(), torch.randn(16, 8))


def check_all_parameters_move(block: nn.Module, inputs: torch.Tensor) -> None:
    """What starts at zero must not stay there, nor keep what stands before it where it is."""
    head = nn.Linear(8, 1)
    start = {name: p.detach().clone() for name, p in block.named_parameters()}
    optimizer = torch.optim.SGD([*block.parameters(), *head.parameters()], lr=0.1)
    target = torch.randn(len(inputs))
    for _ in range(3):
        optimizer.zero_grad()
        output = block(inputs).movedim(1, -1)
        prediction = head(output).flatten(1).mean(1)
        (prediction - target).square().mean().backward()
        optimizer.step()
    same = [name for name, p in block.named_parameters() if torch.equal(p, start[name])]
    assert same == []


@pytest.mark.parametrize("kind", DENSE)
def test_dense_projections(kind: type[nn.Module]) -> None:
    assert kind(8, 5)(torch.randn(16, 8)).shape == (16, 5)
    assert kind(8, 8)(torch.randn(16, 8)).shape == (16, 8)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(("out_channels", "stride"), [(8, 1), (12, 1), (8, 2), (12, 2), (4, 3)])
@pytest.mark.parametrize("kind", CONV)
def test_conv_projections(kind, out_channels, stride, size) -> None:
    side = math.ceil(size / stride)
    output = kind(8, out_channels, stride=stride)(torch.randn(2, 8, size, size))
    assert output.shape == (2, out_channels, side, side)


def test_a_scaled_residual_takes_a_shortcut() -> None:
    shortcut = nn.Linear(8, 3)
    block, rows = ScaledResidual(nn.Linear(8, 3), shortcut=shortcut), torch.randn(4, 8)
    assert torch.equal(block(rows), shortcut(rows))


@pytest.mark.parametrize("kind", [*DENSE, *CONV])
def test_no_bias_stands_in_front_of_a_batch_norm(kind: type[nn.Module]) -> None:
    for sequence in kind(8, 12).modules():
        if isinstance(sequence, nn.Sequential):
            for layer, following in pairwise(sequence):
                if isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d):
                    assert getattr(layer, "bias", None) is None


@pytest.mark.parametrize("kind", DENSE)
def test_dropout_stands_in_the_branch_only(kind: type[nn.Module]) -> None:
    block = kind(8, dropout=0.5)
    assert [n for n, m in block.named_modules() if isinstance(m, nn.Dropout)] == ["branch.3"]


def test_a_bottleneck_works_on_a_quarter_of_its_channels() -> None:
    convs = [m for m in ConvBottleneckBlock(16).branch if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(16, 4), (4, 4), (4, 16)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseResidualBlock(0), "in_features must be >= 1, got 0"),
        (lambda: DensePreActivationBlock(4, 0), "out_features must be >= 1, got 0"),
        (lambda: DenseResidualBlock(4, dropout=-0.1), "dropout must be in"),
        (lambda: ConvResidualBlock(4, 0), "out_channels must be >= 1, got 0"),
        (lambda: ConvPreActivationBlock(4, stride=0), "stride must be >= 1, got 0"),
        (lambda: ConvBottleneckBlock(4, 3), "out_channels >= 4, got 3"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
