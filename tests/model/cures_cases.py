"""Models for the cures, and findings that ask for them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.model.diagnosis import Finding

EXAMPLE = torch.linspace(-1, 1, 12 * 8).reshape(12, 8).sin() * 2


def finding(cure: str, *modules: str, **arguments: object) -> Finding:
    return Finding(
        "code",
        "error",
        modules[0] if modules else "",
        "message",
        cure=cure,
        cure_arguments=arguments,
        modules=modules,
    )


def stack(depth: int = 8, width: int = 8, activation: Callable[[], nn.Module] = nn.ReLU):
    """Linear layers and activations, one after another, and a head."""
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def images(depth: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        m for _ in range(depth) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(256, 3)
    )


class Loop(nn.Module):
    """Layers in a list, the activation a function."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu, depth: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.head = nn.Linear(8, 3)
        self.bend = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.bend(layer(x))
        return self.head(x)


class Blocks(nn.Module):
    """Blocks with a forward of their own, in a list."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.two(torch.tanh(self.one(x))))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(self.Block() for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Writes(nn.Module):
    """A block that writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(8, 8), Overwriting(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.first(x)))


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.relu_()))
