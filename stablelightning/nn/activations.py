"""Activations that torch does not have; everything that torch has is torch's."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from stablelightning.errors import RecipeError
from stablelightning.functional.activations import (
    check_pieces,
    maxout,
    maxout_gain,
    scaled_sigmoid,
)

__all__ = [
    "Maxout",
    "MaxoutConv1d",
    "MaxoutConv2d",
    "MaxoutConv3d",
    "MaxoutLinear",
    "ScaledSigmoid",
]


class ScaledSigmoid(nn.Module):
    """``4 * sigmoid(x) - 2``: slope 1 at the origin, in (-2, 2), for hidden layers.

    Where a hidden layer must be bounded and smooth. Unlike the sigmoid it passes gradients on
    undiminished near the origin and gives centred outputs; being bounded, it saturates all the same
    where its inputs are large.

    Shape:
        Any; the same.

    Source:
        See :func:`~stablelightning.functional.activations.scaled_sigmoid`.

    Example:
        >>> ScaledSigmoid()(torch.tensor([0.0, 100.0]))
        tensor([0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply it to every element."""
        return scaled_sigmoid(input)


class Maxout(nn.Module):
    """Base of the maxout layers: a layer of ``pieces`` times as many outputs, and their maximum.

    A unit is the largest of ``pieces`` linear functions of the input, and so a convex, piecewise
    linear function that is learned. **It costs ``pieces`` times the parameters and the
    multiplications of the layer with its activation**, which its ``repr`` states.

    Weights start normal with the standard deviation that keeps the mean square of standardised
    inputs (``maxout_gain(pieces) / sqrt(fan_in)``, for two pieces ``1 / sqrt(fan_in)``), biases at
    zero. :func:`stablelightning.initialize` finds them in order, and leaves them.

    Attributes:
        layer: the linear layer or convolution, with ``pieces`` times as many outputs, those of one
            unit side by side.
        pieces: linear pieces of a unit.

    Source:
        Goodfellow et al. 2013, arXiv:1302.4389.

    Example:
        >>> isinstance(MaxoutLinear(4, 3), Maxout)
        True
    """

    def __init__(self, layer: nn.Linear | _ConvNd, pieces: int, *, dim: int) -> None:
        super().__init__()
        self.layer = layer
        self.pieces = pieces
        self._dim = dim
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew; biases become zero."""
        weight = self.layer.weight
        fan_in = weight[0].numel()
        with torch.no_grad():
            weight.normal_(std=maxout_gain(self.pieces) / fan_in**0.5)
            if self.layer.bias is not None:
                self.layer.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, and keep the largest piece of every unit."""
        return maxout(self.layer(input), self.pieces, dim=self._dim)

    def extra_repr(self) -> str:
        """The pieces, and what they cost."""
        count = sum(p.numel() for p in self.parameters())
        return f"pieces={self.pieces}, parameters={count} ({self.pieces}x those of the plain layer)"


class MaxoutLinear(Maxout):
    """A linear layer whose every output is the largest of ``pieces`` linear functions.

    It has ``pieces`` times the parameters of ``nn.Linear`` with the same features.

    Args:
        in_features: inputs, >= 1.
        out_features: outputs, >= 1.
        pieces: linear pieces of a unit, >= 2.
        bias: whether there are biases.
        **kwargs: ``device``, ``dtype``.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        RecipeError: a number is out of its range.

    Source:
        Goodfellow et al. 2013, arXiv:1302.4389.

    Example:
        >>> layer = MaxoutLinear(8, 16)
        >>> layer(torch.randn(5, 8)).shape
        torch.Size([5, 16])
        >>> layer
        MaxoutLinear(
          pieces=2, parameters=288 (2x those of the plain layer)
          (layer): Linear(in_features=8, out_features=32, bias=True)
        )
    """

    def __init__(
        self, in_features: int, out_features: int, pieces: int = 2, bias: bool = True, **kwargs: Any
    ) -> None:
        _check(pieces, in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        layer = nn.Linear(in_features, out_features * pieces, bias, **kwargs)
        super().__init__(layer, pieces, dim=-1)


class _MaxoutConv(Maxout):
    _convolution: type[_ConvNd]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, pieces: int = 2, **kwargs: Any
    ) -> None:
        _check(pieces, in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        make: Any = self._convolution
        layer = make(in_channels, out_channels * pieces, kernel_size, **kwargs)
        # From the back, so that an image without its batch dimension does as well.
        super().__init__(layer, pieces, dim=-len(layer.kernel_size) - 1)


class MaxoutConv1d(_MaxoutConv):
    """As :class:`MaxoutConv2d`, over sequences ``(N, C, length)``.

    Example:
        >>> MaxoutConv1d(3, 8, kernel_size=3)(torch.randn(2, 3, 10)).shape
        torch.Size([2, 8, 8])
    """

    _convolution = nn.Conv1d


class MaxoutConv2d(_MaxoutConv):
    """A convolution whose every output channel is the largest of ``pieces`` channels.

    It has ``pieces`` times the parameters and multiplications of the plain convolution.

    Args:
        in_channels: input channels, >= 1.
        out_channels: output channels, >= 1.
        kernel_size: as in ``nn.Conv2d``.
        pieces: linear pieces of a channel, >= 2.
        **kwargs: the other arguments of ``nn.Conv2d``: ``stride``, ``padding``, ``groups``,
            ``bias`` and so on.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``.

    Raises:
        RecipeError: a number is out of its range.

    Source:
        Goodfellow et al. 2013, arXiv:1302.4389.

    Example:
        >>> MaxoutConv2d(3, 8, kernel_size=3, padding=1)(torch.randn(2, 3, 10, 10)).shape
        torch.Size([2, 8, 10, 10])
    """

    _convolution = nn.Conv2d


class MaxoutConv3d(_MaxoutConv):
    """As :class:`MaxoutConv2d`, over volumes ``(N, C, D, H, W)``.

    Example:
        >>> MaxoutConv3d(1, 4, kernel_size=2)(torch.randn(2, 1, 4, 4, 4)).shape
        torch.Size([2, 4, 3, 3, 3])
    """

    _convolution = nn.Conv3d


def _check(pieces: int, **sizes: int) -> None:
    check_pieces(pieces)
    for name, value in sizes.items():
        if value < 1:
            raise RecipeError(f"{name} must be >= 1, got {value}; a layer needs a width.")
