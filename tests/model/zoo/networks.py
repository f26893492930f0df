"""Hand-made networks as users write them: functional calls, gates, skips, tied weights."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# ---- activations as people write them -----------------------------------------------------------


def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def clamped(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x) ** 2


def sine(x: Tensor) -> Tensor:
    return torch.sin(3.0 * x)


class Chain(nn.Module):
    """Linear layers, each followed by a function of its own; a plain linear layer at the end."""

    def __init__(self, *functions: Callable[[Tensor], Tensor], width: int = 24) -> None:
        super().__init__()
        self.functions = functions
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in functions)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer, function in zip(self.layers, self.functions, strict=True):
            x = function(layer(x))
        return self.head(x)


class SharedActivation(nn.Module):
    """One activation module for all layers; a layer that never runs."""

    def __init__(self, activation: nn.Module, width: int = 24) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.never = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.second(self.activation(self.first(x)))))


class Dense(nn.Module):
    """A user's own linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.offset = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.offset


# ---- convolutional -------------------------------------------------------------------------------


class PreActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        needed = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if needed else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(activated))))


class PreActivationResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            PreActivationBlock(8, 8), PreActivationBlock(8, 16, 2), PreActivationBlock(16, 16)
        )
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseUnit(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Concatenating units, and a transition that halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.units = nn.Sequential(DenseUnit(8, 8), DenseUnit(16, 8))
        self.transition_norm = nn.BatchNorm2d(24)
        self.transition = nn.Conv2d(24, 12, 1, bias=False)
        self.last = DenseUnit(12, 8)
        self.norm = nn.BatchNorm2d(20)
        self.classifier = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(self.stem(x))
        x = F.avg_pool2d(self.transition(F.relu(self.transition_norm(x))), 2)
        x = F.relu(self.norm(self.last(x)), inplace=True)
        return self.classifier(x.mean((2, 3)))


def conv_unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_unit(3, 8)
        self.down2 = conv_unit(8, 16)
        self.bottom = conv_unit(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.merge2 = conv_unit(32, 16)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge1 = conv_unit(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.down1(x)
        skip2 = self.down2(F.max_pool2d(skip1, 2))
        x = self.bottom(F.max_pool2d(skip2, 2))
        x = self.merge2(torch.cat([self.up2(x), skip2], 1))
        x = self.merge1(torch.cat([self.up1(x), skip1], 1))
        return self.out(x)


class Generator(nn.Module):
    """Transposed and grouped convolutions from a code to an image in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 16 * 16)
        self.up1 = nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.up2 = nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.project(x)).view(-1, 16, 4, 4)
        x = F.leaky_relu(self.norm(self.up1(x)), 0.2)
        return torch.tanh(self.up2(x))


class ConvPoolRelu(nn.Module):
    """Pooling and dropout before the activation, the norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(F.elu(F.max_pool2d(self.conv1(x), 2)))
        x = F.dropout(F.avg_pool2d(self.conv2(x), 2), 0.2, self.training)
        x = F.elu(x)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


# ---- several outputs, tied weights ---------------------------------------------------------------


class TiedAutoencoder(nn.Module):
    """The decoder multiplies by the transposed weight of the encoder."""

    def __init__(self, width: int = 24, code: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, code)
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.offset)


class TwoHeads(nn.Module):
    """A class and a number from one trunk."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.trunk = nn.Linear(width, width)
        self.classes = nn.Linear(width, 5)
        self.number = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.trunk(x))
        return {"classes": self.classes(x).softmax(-1), "number": self.number(x).squeeze(-1)}


class Siamese(nn.Module):
    """One encoder for two inputs."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, width)
        self.head = nn.Linear(width, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        difference = torch.tanh(self.encoder(left)) - torch.tanh(self.encoder(right))
        return torch.sigmoid(self.head(difference.abs()))


class Gated(nn.Module):
    """A gated linear unit: one layer, halved."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(self.inner(x), -1))


class Highway(nn.Module):
    """A learned mixture of a layer and its input."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.share = nn.Linear(width, width)
        self.change = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.share(x))
        return self.head(share * F.relu(self.change(x)) + (1 - share) * x)


class TwoSided(nn.Module):
    """Both halves of a ReLU, in place and side by side, recomputed in the backward pass."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 4)

    def halves(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([F.relu(x), F.relu(-x)], -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(checkpoint(self.halves, x, use_reentrant=False))
        return F.log_softmax(self.head(x.tanh_()), -1)
