"""Small networks to start from: for rows, for small images, for sequences."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn.heads import Distribution, Gaussian, GaussianHead, QuantileHead
from stablelightning.nn.recurrent import VariationalLSTM
from stablelightning.nn.settings import check_dropout, check_sizes


class MLP(nn.Module):
    """A multi-layer perceptron with dropout after every hidden layer.

    Args:
        in_features: number of inputs per row, >= 1; images and the like are flattened to it. In a
            recipe ``null`` takes the data's number.
        out_features: number of outputs, >= 1: classes, labels or regression targets; ``null`` as
            for ``in_features``.
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
        in_features: int | None,
        out_features: int | None = 1,
        *,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        variance: bool = False,
    ) -> None:
        super().__init__()
        in_features, out_features = _stated(in_features=in_features, out_features=out_features)
        check_sizes(in_features=in_features, out_features=out_features, hidden=hidden)
        check_dropout(dropout)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((in_features, *hidden)):
            layers += [nn.Linear(inputs, outputs), activation(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = _head((in_features, *hidden)[-1], out_features, variance=variance)

    def forward(self, inputs: Tensor) -> Tensor | Distribution:
        """Predict from rows ``(N, ...)``."""
        output: Tensor | Distribution = self.head(self.body(inputs.flatten(1)))
        return output


class QuantileMLP(MLP):
    """A multi-layer perceptron that predicts a median and an interval: noise of any shape.

    Args:
        in_features: as for :class:`MLP`, as are the others.
        out_features: number of targets, >= 1.
        hidden: width of each hidden layer.
        dropout: probability of dropping a hidden unit, in [0, 1).
        activation: makes the non-linearity.
        level: share of the targets that the interval shall hold, in (0, 1). It learns to, and does
            not promise to: :class:`~stablelightning.callbacks.PredictSets` does.

    Shape:
        ``(N, ...)`` with ``in_features`` numbers per row to
        :class:`~stablelightning.nn.heads.Quantiles`.

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> import torch
        >>> quantiles = QuantileMLP(10, level=0.8)(torch.randn(5, 10))
        >>> quantiles.median.shape, quantiles.level[0]
        (torch.Size([5]), tensor(0.8000))
    """

    def __init__(
        self,
        in_features: int | None,
        out_features: int | None = 1,
        *,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        level: float = 0.9,
    ) -> None:
        in_features, out_features = _stated(in_features=in_features, out_features=out_features)
        super().__init__(
            in_features, out_features, hidden=hidden, dropout=dropout, activation=activation
        )
        self.head = QuantileHead((in_features, *hidden)[-1], out_features, level=level)


class DeepMLP(MLP):
    """A plain stack of equal hidden layers: depth and width instead of a list.

    Args:
        in_features: number of inputs per row, >= 1; images and the like are flattened to it.
        out_features: number of outputs, >= 1.
        depth: number of hidden layers, >= 1. Beyond about 20 a plain stack trains only from a
            suitable initialization, or not at all: a stack of
            :class:`~stablelightning.nn.residual.ScaledResidual` has no such limit.
        width: units of each hidden layer, >= 1.
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.SELU``.
        dropout: probability of dropping a unit of each hidden layer, in [0, 1). It adds up over
            the depth.

    Shape:
        ``(N, ...)`` with ``in_features`` numbers per row to ``(N, out_features)``.

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> sum(isinstance(m, nn.Linear) for m in DeepMLP(64, 10, depth=30, width=16).modules())
        31
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        *,
        depth: int = 50,
        width: int = 128,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        check_sizes(depth=depth, width=width)
        super().__init__(
            in_features,
            out_features,
            hidden=[width] * depth,
            activation=activation,
            dropout=dropout,
        )


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


class RecurrentNet(nn.Module):
    """Recurrent layers that read a sequence, and a head on what they know at its end.

    Args:
        in_features: numbers of one step, >= 1. Whatever a row holds is cut into such steps: an
            image of 8 x 8 pixels is read as 8 steps of 8.
        out_features: number of outputs, >= 1: classes, labels or regression targets.
        hidden: units of each recurrent layer, each >= 1; at least one layer.
        dropout: probability of dropping a feature before the head, in [0, 1); dropout inside the
            recurrent layers is theirs.
        layer: makes a recurrent layer from the sizes of its input and its state, such as
            ``VariationalLSTM``, ``VariationalGRU`` or ``nn.LSTM``. It is told ``batch_first=True``.
        variance: predict a :class:`~stablelightning.nn.heads.Gaussian` instead of plain numbers.

    Shape:
        ``(N, L, in_features)``, or ``(N, ...)`` with a multiple of ``in_features`` numbers per row,
        to ``(N, out_features)``, or to a Gaussian as in :class:`MLP`.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``forward``: a row is not a whole number of steps.

    Example:
        >>> import torch
        >>> RecurrentNet(8, 10)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        *,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.1,
        layer: Callable[[int, int], nn.Module] = VariationalLSTM,
        variance: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features, hidden=hidden)
        check_dropout(dropout)
        if not hidden:
            raise RecipeError("hidden must name at least one layer, got none; try [64].")
        make: Callable[..., nn.Module] = layer
        self.layers = nn.ModuleList(
            make(*sizes, batch_first=True) for sizes in pairwise((in_features, *hidden))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = _head(hidden[-1], out_features, variance=variance)
        self.in_features = in_features

    def forward(self, sequences: Tensor) -> Tensor | Gaussian:
        """Predict from sequences ``(N, L, in_features)``."""
        rows = sequences.flatten(1)
        if rows.shape[1] % self.in_features:
            raise DataError(
                f"a row must be a whole number of steps of {self.in_features}, got "
                f"{rows.shape[1]} numbers; set in_features to the numbers of one step."
            )
        states = rows.unflatten(1, (-1, self.in_features))
        for layer in self.layers:
            states, _ = layer(states)
        output: Tensor | Gaussian = self.head(self.dropout(states[:, -1]))
        return output


def _stated(**sizes: int | None) -> list[int]:
    """Sizes that are known by now; what a recipe leaves open was filled in by its data."""
    for name, size in sizes.items():
        if size is None:
            raise RecipeError(
                f"{name} must be a number where the data does not say it, got None; count the "
                "columns of the inputs, or the classes."
            )
    return [size for size in sizes.values() if size is not None]


def _head(in_features: int, out_features: int, *, variance: bool) -> nn.Module:
    if variance:
        return GaussianHead(in_features, out_features)
    return nn.Linear(in_features, out_features)
