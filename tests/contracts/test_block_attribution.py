"""What a watched forward finds in the blocks: consumers, branches, and what is zero in them."""

import pytest
import torch
from torch import nn

from stablelightning.model.attribution import attribute
from stablelightning.nn import (
    ConvBottleneckBlock,
    ConvPreActivationBlock,
    ConvResidualBlock,
    DensePreActivationBlock,
    DenseResidualBlock,
    ScaledResidual,
)
from tests.contracts.test_blocks import BLOCKS, WIDTH, branch, inputs_of

#: Of the first of two equal blocks: each weight layer, what consumes it, and whether a norm lies
#: between. Written down before looking: what a careful person would say.
CONSUMERS: dict[str, dict[str, tuple[str, bool]]] = {
    "DenseBlock before": {"linear": ("relu", True)},
    "DenseBlock after": {"linear": ("relu", False)},
    "DenseBlock plain": {"linear": ("relu", False)},
    "DenseResidualBlock": {"branch.0": ("relu", True), "branch.3": ("relu", True)},
    "DensePreActivationBlock": {"branch.0": ("relu", True), "branch.3": ("relu", True)},
    "ScaledResidual": {"branch.0": ("relu", False), "branch.2": ("linear", False)},
    "HighwayBlock": {"linear": ("relu", False), "gate": ("sigmoid", False)},
    "BalancedFusion": {"first": ("linear", False), "second": ("linear", False)},
    "ConvBlock before": {"conv": ("relu", True)},
    "ConvBlock after": {"conv": ("relu", False)},
    "ConvResidualBlock": {"branch.0": ("relu", True), "branch.3": ("relu", True)},
    "ConvPreActivationBlock": {"branch.0": ("relu", True), "branch.3": ("relu", True)},
    "ConvBottleneckBlock": {f"branch.{i}": ("relu", True) for i in (0, 3, 6)},
    "VariationalLSTM": {"layer": ("recurrent", False)},
    "VariationalLSTM norm": {"layer": ("recurrent", False)},
    "VariationalGRU": {"layer": ("recurrent", False)},
    "VariationalGRU norm": {"layer": ("recurrent", False)},
}

#: The residual blocks: the layers of the branch, its last norm where the branch ends in one, its
#: learned scale.
BRANCHES: dict[str, tuple[tuple[str, ...], str | None, str | None]] = {
    "DenseResidualBlock": (("branch.0", "branch.3"), "branch.4", None),
    "DensePreActivationBlock": (("branch.0", "branch.3"), None, None),
    "ScaledResidual": (("branch.0", "branch.2"), None, "scale"),
    "ConvResidualBlock": (("branch.0", "branch.3"), "branch.4", None),
    "ConvPreActivationBlock": (("branch.0", "branch.3"), None, None),
    "ConvBottleneckBlock": (("branch.0", "branch.3", "branch.6"), "branch.7", None),
}


def found_in(name: str):
    model = nn.Sequential(BLOCKS[name](), BLOCKS[name]())
    return attribute(model, inputs_of(name))


def test_the_tables_cover_every_block() -> None:
    assert CONSUMERS.keys() == BLOCKS.keys()


@pytest.mark.parametrize("name", CONSUMERS)
def test_every_layer_is_given_its_consumer(name: str) -> None:
    found = found_in(name)
    assert found.notes == []
    consumers = {
        role.name.removeprefix("0."): (role.consumer.name, role.consumer.normalised)
        for role in found.layers
        if role.name.startswith("0.")
    }
    expected = CONSUMERS[name]
    assert consumers.keys() == expected.keys()
    for layer, (function, normalised) in expected.items():
        assert function in consumers[layer][0], layer
        assert consumers[layer][1] is normalised, layer


@pytest.mark.parametrize("name", BLOCKS)
def test_exactly_the_residual_blocks_have_a_branch(name: str) -> None:
    branches = found_in(name).branches
    if name not in BRANCHES:
        assert branches == []
        return
    layers, last_norm, scale = BRANCHES[name]
    assert [found.index for found in branches] == [0, 1]
    for number, found in enumerate(branches):
        assert found.total == 2
        assert found.layers == tuple(f"{number}.{layer}" for layer in layers)
        assert found.last_layer == f"{number}.{layers[-1]}"
        assert found.last_norm == (last_norm and f"{number}.{last_norm}")
        assert found.scale == (scale and f"{number}.{scale}")
        assert found.has_norm is (scale is None)


@pytest.mark.parametrize(
    ("block", "projection"),
    [
        (DenseResidualBlock(WIDTH, 12), "shortcut.0"),
        (DensePreActivationBlock(WIDTH, 12), "projection"),
        (ConvResidualBlock(WIDTH, 12, stride=2), "shortcut.0"),
        (ConvPreActivationBlock(WIDTH, stride=2), "projection"),
        (ConvBottleneckBlock(WIDTH, 32), "shortcut.0"),
        (ScaledResidual(branch(), shortcut=nn.Linear(WIDTH, WIDTH)), "shortcut"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_a_projection_is_no_part_of_the_branch(block: nn.Module, projection: str) -> None:
    images = any(isinstance(module, nn.Conv2d) for module in block.modules())
    inputs = torch.randn(4, WIDTH, 6, 6) if images else torch.randn(16, WIDTH)
    found = attribute(block, inputs)
    (only,) = found.branches
    assert only.projection == projection
    assert projection not in only.layers
    (role,) = [role for role in found.layers if role.name == projection]
    assert role.branch is None
