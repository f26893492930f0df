"""Models written as a function, for tests of what a watched forward tells of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stablelightning.model.attribution import attribute

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """A forward written as a function of the module and its inputs."""

    def __init__(self, forward: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        for name, member in members.items():
            setattr(self, name, member)
        self._written = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._written(self, *args, **kwargs)


def between(middle: Callable[[Tensor], Tensor], *, width: int = 6, read: int = 6) -> nn.Module:
    """A layer ``a``, what is to be followed, and a layer ``b`` that reads it."""
    return Written(lambda s, x: s.b(middle(s.a(x))), a=nn.Linear(4, width), b=nn.Linear(read, 2))


def consumer(model: nn.Module, inputs: Any = ROWS, layer: str = "a") -> str:
    """The name of what consumes a layer's output."""
    return attribute(model, inputs)[layer].consumer.name
