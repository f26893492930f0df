"""Small networks to start from: a perceptron for rows, a convolutional one for small images."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from stablelightning.errors import RecipeError
from stablelightning.nn.heads import Gaussian, GaussianHead
from stablelightning.nn.settings import check_dropout, check_sizes


class MLP(nn.Module):
    """A multi-layer perceptron with dropout after every hidden layer.

    Args:
        in_features: number of inputs per row, >= 1; images and the like are flattened to it.
        out_features: number of outputs, >= 1: classes, labels or regression targets.
        hidden: width of each hidden layer, each >= 1; empty for a linear model.
        dropout: probability of dropping a hidden unit, in [0, 1).
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.GELU``.
        variance: predict a :class:`~stablelightning.nn.heads.Gaussian` (mean and variance) instead
            of plain numbers: a regression that knows the noise of its data.

    Shape:
        ``(N, ...)`` with ``in_features`` numbers per row to ``(N, out_features)``; with
        ``variance`` to a Gaussian, whose tensors are ``(N,)`` for one output (see
        :class:`~stablelightning.nn.heads.GaussianHead`).

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> import torch
        >>> MLP(64, 10)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> MLP(10, variance=True)(torch.randn(5, 10)).mean.shape
        torch.Size([5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        *,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        variance: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features, hidden=hidden)
        check_dropout(dropout)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((in_features, *hidden)):
            layers += [nn.Linear(inputs, outputs), activation(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = _head((in_features, *hidden)[-1], out_features, variance=variance)

    def forward(self, inputs: Tensor) -> Tensor | Gaussian:
        """Predict from rows ``(N, ...)``."""
        output: Tensor | Gaussian = self.head(self.body(inputs.flatten(1)))
        return output


class ConvNet(nn.Module):
    """A small convolutional network for small images, from 8 x 8 pixels upward.

    Each stage is a 3 x 3 convolution, batch norm, the activation, a 2 x 2 max pool and dropout of
    whole channels; an average over what is left of the image feeds the head.

    Args:
        in_channels: channels of the images, >= 1: 1 for grey, 3 for colour.
        out_features: number of outputs, >= 1: classes, labels or regression targets.
        channels: channels of each stage, each >= 1; at least one stage. Each halves the image.
        dropout: probability of dropping a channel after a stage, and a feature before the head; in
            [0, 1).
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.GELU``.
        variance: predict a :class:`~stablelightning.nn.heads.Gaussian` instead of plain numbers.

    Shape:
        ``(N, in_channels, height, width)`` to ``(N, out_features)``, or to a Gaussian as in
        :class:`MLP`.

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> import torch
        >>> ConvNet(1, 10)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int = 1,
        *,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        variance: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_features=out_features, channels=channels)
        check_dropout(dropout)
        if not channels:
            raise RecipeError("channels must name at least one stage, got none; try [32, 64].")
        stages = [
            nn.Sequential(
                # The batch norm that follows has a bias of its own.
                nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                activation(),
                # Rounding up keeps at least one pixel, however many stages an 8 x 8 image meets.
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Dropout2d(dropout),
            )
            for inputs, outputs in pairwise((in_channels, *channels))
        ]
        self.body = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.head = _head(channels[-1], out_features, variance=variance)

    def forward(self, images: Tensor) -> Tensor | Gaussian:
        """Predict from images ``(N, in_channels, height, width)``."""
        output: Tensor | Gaussian = self.head(self.pool(self.body(images)))
        return output


def _head(in_features: int, out_features: int, *, variance: bool) -> nn.Module:
    if variance:
        return GaussianHead(in_features, out_features)
    return nn.Linear(in_features, out_features)
