"""The rows: a network, how it starts, and how it is trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tests.benchmarks.stability import networks

Build = Callable[..., nn.Module]

DEFAULT = "default"
BY_HAND = "by hand"
BATCH_NORM = "batch norm"
TWO_LAYERS = "two layers"
TWO_HIDDEN = "two hidden"
OURS = "ours"
#: "Two-layer net" is read in both ways, one hidden layer or two; the better one is the bound.
SHALLOW = (TWO_LAYERS, TWO_HIDDEN)
COLUMNS = (DEFAULT, BY_HAND, BATCH_NORM, *SHALLOW, OURS)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: of the row.
        build: the family of networks: plain, convolutional or residual.
        depth: hidden layers, or residual blocks.
        width: units, or channels.
        activation: of all hidden layers.
        optimizer: ``"adam"`` or ``"sgd"``, without momentum or decay.
        rate: learning rate.
        epochs: over the training images.
        normal_weights: whether every weight starts from N(0, 1).
        rate_at_fault: whether the rate is known to be too high for such a stack.
    """

    name: str
    build: Build
    depth: int
    width: int
    activation: str
    optimizer: str
    rate: float
    epochs: int = 30
    normal_weights: bool = False
    rate_at_fault: bool = False

    @property
    def image(self) -> bool:
        return self.build is networks.convolutional

    def network(self, *, norm: bool = False) -> nn.Module:
        """As torch's constructors leave it, or from N(0, 1)."""
        model = self.build(self.depth, self.width, self.activation, norm=norm)
        if self.normal_weights:
            networks.draw_normal(model)
        return model

    def shallow(self, hidden: int) -> nn.Module:
        """A shallow net of the same kind, by torch's default."""
        family = networks.convolutional if self.image else networks.plain
        return family(hidden, self.width, self.activation)

    def optimizer_for(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=self.rate)
        return torch.optim.Adam(model.parameters(), lr=self.rate, fused=True)  # the same, faster

    def scaled(self, factor: float) -> "Row":
        return replace(self, epochs=max(1, round(self.epochs * factor)))

    def describe(self) -> str:
        rate = "Adam" if self.optimizer == "adam" else "SGD"
        return f"{rate} {self.rate:g}, {self.epochs} epochs"


def _plain(depth: int, width: int, activation: str, rate: float, **more: Any) -> Row:
    names = {"relu": "ReLU", "selu": "SELU", "gelu": "GELU", "silu": "SiLU", "mish": "Mish"}
    name = f"{depth}x{width} {names.get(activation, activation.replace('_', ' '))}"
    more = {"name": name, "optimizer": "adam", **more}
    return Row(
        build=networks.plain, depth=depth, width=width, activation=activation, rate=rate, **more
    )


def _residual(blocks: int, epochs: int) -> Row:
    return Row(
        f"{blocks} residual blocks, no norm", networks.residual, blocks, 100, "relu", "adam", 1e-3,
        epochs,
    )  # fmt: skip


ROWS = {
    row.name: row
    for row in (
        _plain(30, 128, "relu", 1e-3),
        _plain(50, 128, "relu", 3e-4),
        _plain(30, 100, "tanh", 1e-3),
        _plain(50, 100, "selu", 3e-3, optimizer="sgd"),
        _plain(100, 100, "selu", 3e-3, optimizer="sgd"),
        _plain(30, 128, "leaky_relu", 3e-4, name="30x128 leaky ReLU(0.2)"),
        _plain(30, 128, "gelu", 3e-4),
        _plain(30, 128, "silu", 3e-4),
        _plain(30, 128, "mish", 3e-4),
        _plain(6, 100, "sigmoid", 0.1, optimizer="sgd"),
        _residual(50, 30),
        _residual(200, 5),
        Row("30-layer 3x3 ConvNet", networks.convolutional, 30, 16, "relu", "adam", 1e-3, 10),
        _plain(30, 128, "relu", 1e-3, name="30x128 ReLU from N(0,1)", normal_weights=True),
        _plain(45, 100, "selu", 1e-3, name="45x100 SELU, rate too high", rate_at_fault=True),
        _plain(36, 110, "gelu", 1e-3, name="36x110 GELU, rate too high", rate_at_fault=True),
    )
}
