"""A block whose gate decides, unit by unit, how much of the input is carried past it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stablelightning.errors import RecipeError
from stablelightning.nn.settings import check_sizes


class HighwayBlock(nn.Module):
    """A linear layer and its activation, mixed with the input by a learned gate.

    ``gate * activation(linear(x)) + (1 - gate) * x`` with ``gate = sigmoid(W x + b)``. The bias
    starts at ``-carry_bias``, so that the input is carried through; the gates open where training
    wants them to. ``sl.initialize`` leaves it as it is, unless told to overwrite.

    Args:
        features: number of inputs and outputs, >= 1.
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.Tanh``.
        carry_bias: how far the gates are closed at the start, finite; 4 opens them by 2%. What
            remains of the signal after ``depth`` blocks is about ``exp(-depth * exp(-carry_bias))``
            of it: about the logarithm of the depth is right.

    Shape:
        ``(N, ..., features)`` to the same.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Srivastava, Greff, Schmidhuber 2015, arXiv:1505.00387.

    Example:
        >>> block, rows = HighwayBlock(16), torch.randn(8, 16)
        >>> bool((block(rows) - rows).abs().mean() < 0.05)
        True
    """

    def __init__(
        self,
        features: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        carry_bias: float = 4.0,
    ) -> None:
        super().__init__()
        check_sizes(features=features)
        if not math.isfinite(carry_bias):
            raise RecipeError(f"carry_bias must be finite, got {carry_bias}; 4 is a good start.")
        self.linear = nn.Linear(features, features)
        self.activation = activation()
        self.gate = nn.Linear(features, features)
        nn.init.constant_(self.gate.bias, -carry_bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Mix the input with its transformation."""
        gate = torch.sigmoid(self.gate(inputs))
        transformed: Tensor = self.activation(self.linear(inputs))
        return gate * transformed + (1 - gate) * inputs
