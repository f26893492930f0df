"""The networks of the benchmark, with batch norm where a column adds it."""

from itertools import pairwise

import torch
from torch import Tensor, nn

CLASSES = 10
SIDE = 8
PIXELS = SIDE * SIDE

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
}


def activation_named(name: str) -> nn.Module:
    return nn.LeakyReLU(0.2) if name == "leaky_relu" else ACTIVATIONS[name]()


def plain(depth: int, width: int, activation: str, *, norm: bool = False) -> nn.Module:
    """``depth`` hidden layers in a row, and the output layer."""
    layers: list[nn.Module] = []
    for before in [PIXELS] + [width] * (depth - 1):
        layers.append(nn.Linear(before, width))
        if norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(activation_named(activation))
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def convolutional(depth: int, width: int, activation: str, *, norm: bool = False) -> nn.Module:
    """``depth`` 3x3 convolutions in a row at full size, and the output layer over all places."""
    layers: list[nn.Module] = []
    for before in [1] + [width] * (depth - 1):
        layers.append(nn.Conv2d(before, width, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(activation_named(activation))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * PIXELS, CLASSES))


class Block(nn.Module):
    """``x + linear(relu(linear(x)))``."""

    def __init__(self, width: int, activation: str, *, norm: bool) -> None:
        super().__init__()
        parts = [nn.Linear(width, width), activation_named(activation), nn.Linear(width, width)]
        if norm:
            parts.insert(1, nn.BatchNorm1d(width))
            parts.append(nn.BatchNorm1d(width))
        self.branch = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def residual(blocks: int, width: int, activation: str, *, norm: bool = False) -> nn.Module:
    """``blocks`` residual blocks between an input and an output layer."""
    middle = [Block(width, activation, norm=norm) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(PIXELS, width), *middle, nn.Linear(width, CLASSES))


def weight_layers(model: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def draw_by_hand(model: nn.Module, activation: str) -> None:
    """What a careful person types: He, LeCun or Glorot by what follows each layer; zero biases."""
    followed = {id(m): n for m, n in _followers(model)}
    for layer in weight_layers(model):
        nn.init.zeros_(layer.bias)
        if not isinstance(followed.get(id(layer)), type(activation_named(activation))):
            nn.init.xavier_normal_(layer.weight)
        elif activation == "selu":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")  # LeCun: gain 1
        elif activation in ("tanh", "sigmoid"):
            nn.init.xavier_normal_(layer.weight)
        elif activation == "leaky_relu":
            nn.init.kaiming_normal_(layer.weight, a=0.2)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def _followers(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    pairs = []
    for sequence in model.modules():
        if isinstance(sequence, nn.Sequential):
            children = list(sequence)
            pairs += list(pairwise(children))
    return pairs


@torch.no_grad()
def draw_normal(model: nn.Module) -> None:
    """Weights from N(0, 1): a beginner's, far too large."""
    for layer in weight_layers(model):
        nn.init.normal_(layer.weight)
