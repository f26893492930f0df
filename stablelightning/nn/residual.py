"""Blocks with a skip: what comes in goes out again, plus a branch that starts at zero.

A stack of them is the identity at the start, however deep: neither the signal nor its gradient can
vanish or explode. Each branch has one tensor that is zero (the gamma of its last norm, its last
weight, or a scale), never two in a row: the gradient of a product of two zeros is zero for good.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from stablelightning.errors import RecipeError
from stablelightning.nn.blocks import same_convolution
from stablelightning.nn.settings import check_dropout, check_sizes

#: Widths of a bottleneck: its middle has a quarter of the channels of its output.
BOTTLENECK_REDUCTION = 4


class _PostActivation(nn.Module):
    """``activation(shortcut(x) + branch(x))``, where the last module of the branch is a norm."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.activation = activation
        # Zero here, and the block is activation(shortcut(x)) until training moves it.
        nn.init.zeros_(cast(Tensor, branch[-1].weight))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the branch to the shortcut, and apply the activation to the sum."""
        output: Tensor = self.activation(self.shortcut(inputs) + self.branch(inputs))
        return output


class _PreActivation(nn.Module):
    """``x + branch(ready(x))``, where the last module of the branch is a weight layer.

    A projection reads what is ready, as the branch does, so that it sees a normalised signal.
    """

    def __init__(
        self, ready: nn.Sequential, branch: nn.Sequential, projection: nn.Module | None
    ) -> None:
        super().__init__()
        self.ready = ready
        self.branch = branch
        self.projection = projection
        # Not the gamma of the last norm: it stands before this layer, and a zero there would be
        # followed by relu'(0) = 0, from which no gradient returns.
        nn.init.zeros_(cast(Tensor, branch[-1].weight))
        if branch[-1].bias is not None:
            nn.init.zeros_(cast(Tensor, branch[-1].bias))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the branch to the input, or to its projection."""
        ready = self.ready(inputs)
        shortcut = inputs if self.projection is None else self.projection(ready)
        output: Tensor = shortcut + self.branch(ready)
        return output


class DenseResidualBlock(_PostActivation):
    """Two linear layers with batch norm, added to the input; the activation after the sum.

    Where the widths differ, a linear layer with batch norm projects the input. At initialization
    the block is ``activation(input)``, or of the projected input: for ReLU a stack of them is the
    identity from its second block on.

    Args:
        in_features: number of inputs, >= 1.
        out_features: number of outputs, >= 1; ``None`` is as many as inputs.
        activation: makes the non-linearity, such as ``nn.ReLU``.
        dropout: probability of dropping a unit between the two layers, in [0, 1).

    Shape:
        ``(N, in_features)`` to ``(N, out_features)``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        He et al. 2015, arXiv:1512.03385; Goyal et al. 2017, arXiv:1706.02677, section 5.1 (the
        last gamma is zero).

    Example:
        >>> block, rows = DenseResidualBlock(16), torch.randn(8, 16)
        >>> torch.equal(block(rows), rows.relu())
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        check_sizes(in_features=in_features, out_features=out_features)
        check_dropout(dropout)
        branch = nn.Sequential(
            nn.Linear(in_features, out_features, bias=False),
            nn.BatchNorm1d(out_features),
            activation(),
            *_dropped(dropout),
            nn.Linear(out_features, out_features, bias=False),
            nn.BatchNorm1d(out_features),
        )
        shortcut: nn.Module = nn.Identity()
        if in_features != out_features:
            shortcut = nn.Sequential(
                nn.Linear(in_features, out_features, bias=False), nn.BatchNorm1d(out_features)
            )
        super().__init__(branch, shortcut, activation())


class DensePreActivationBlock(_PreActivation):
    """Batch norm and activation before each of two linear layers, added to the input.

    Nothing stands on the skip, so that a stack of them is the identity at initialization for every
    activation, and to the last bit. Where the widths differ, a linear layer projects what the first
    norm and activation give. End a stack of them with a norm: the sum grows as the branches learn.

    Args:
        in_features: number of inputs, >= 1.
        out_features: number of outputs, >= 1; ``None`` is as many as inputs.
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.GELU``.
        dropout: probability of dropping a unit between the two layers, in [0, 1).

    Shape:
        ``(N, in_features)`` to ``(N, out_features)``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        He et al. 2016, arXiv:1603.05027.

    Example:
        >>> block, rows = DensePreActivationBlock(16, activation=nn.GELU), torch.randn(8, 16)
        >>> torch.equal(block(rows), rows)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        out_features = in_features if out_features is None else out_features
        check_sizes(in_features=in_features, out_features=out_features)
        check_dropout(dropout)
        branch = nn.Sequential(
            nn.Linear(in_features, out_features, bias=False),
            nn.BatchNorm1d(out_features),
            activation(),
            *_dropped(dropout),
            nn.Linear(out_features, out_features),
        )
        projection = None if in_features == out_features else nn.Linear(in_features, out_features)
        super().__init__(
            nn.Sequential(nn.BatchNorm1d(in_features), activation()), branch, projection
        )


class ConvResidualBlock(_PostActivation):
    """Two 3 x 3 convolutions with batch norm, added to the input: the basic block of a ResNet.

    Where channels or size change, a 1 x 1 convolution with batch norm projects the input. At
    initialization the block is ``activation(input)``, or of the projected input.

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1; ``None`` is as many as in the input.
        stride: step of the first convolution in pixels, >= 1.
        activation: makes the non-linearity, such as ``nn.ReLU``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        He et al. 2015, arXiv:1512.03385, figure 5 left; Goyal et al. 2017, arXiv:1706.02677,
        section 5.1 (the last gamma is zero).

    Example:
        >>> ConvResidualBlock(16, 32, stride=2)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        stride: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        out_channels = in_channels if out_channels is None else out_channels
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        branch = nn.Sequential(
            same_convolution(in_channels, out_channels, stride=stride),
            nn.BatchNorm2d(out_channels),
            activation(),
            same_convolution(out_channels, out_channels),
            nn.BatchNorm2d(out_channels),
        )
        super().__init__(branch, _conv_shortcut(in_channels, out_channels, stride), activation())


class ConvBottleneckBlock(_PostActivation):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with batch norm, added to the input.

    The middle one works on a quarter of the output's channels: wide maps at a fraction of the cost.
    At initialization the block is ``activation(input)``, or of the projected input.

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 4; ``None`` is as many as in the input.
        stride: step of the 3 x 3 convolution in pixels, >= 1 (ResNet "v1.5").
        activation: makes the non-linearity, such as ``nn.ReLU``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        He et al. 2015, arXiv:1512.03385, figure 5 right.

    Example:
        >>> block, images = ConvBottleneckBlock(16), torch.randn(2, 16, 8, 8)
        >>> torch.equal(block(images), images.relu())
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        stride: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        out_channels = in_channels if out_channels is None else out_channels
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        middle = out_channels // BOTTLENECK_REDUCTION
        if middle < 1:
            raise RecipeError(
                f"a bottleneck needs out_channels >= {BOTTLENECK_REDUCTION}, got {out_channels}; "
                "use ConvResidualBlock for fewer."
            )
        branch = nn.Sequential(
            same_convolution(in_channels, middle, 1),
            nn.BatchNorm2d(middle),
            activation(),
            same_convolution(middle, middle, stride=stride),
            nn.BatchNorm2d(middle),
            activation(),
            same_convolution(middle, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        super().__init__(branch, _conv_shortcut(in_channels, out_channels, stride), activation())


class ConvPreActivationBlock(_PreActivation):
    """Batch norm and activation before each of two 3 x 3 convolutions, added to the input.

    Nothing stands on the skip: the identity at initialization, for every activation and to the
    last bit. Where channels or size change, a 1 x 1 convolution projects what the first norm and
    activation give. End a stack of them with a norm and an activation.

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1; ``None`` is as many as in the input.
        stride: step of the first convolution in pixels, >= 1.
        activation: makes the non-linearity, such as ``nn.ReLU``.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        He et al. 2016, arXiv:1603.05027.

    Example:
        >>> block, images = ConvPreActivationBlock(16), torch.randn(2, 16, 8, 8)
        >>> torch.equal(block(images), images)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        stride: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        out_channels = in_channels if out_channels is None else out_channels
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        branch = nn.Sequential(
            same_convolution(in_channels, out_channels, stride=stride),
            nn.BatchNorm2d(out_channels),
            activation(),
            same_convolution(out_channels, out_channels),
        )
        projection = None
        if in_channels != out_channels or stride != 1:
            projection = same_convolution(in_channels, out_channels, 1, stride=stride)
        super().__init__(
            nn.Sequential(nn.BatchNorm2d(in_channels), activation()), branch, projection
        )


class ScaledResidual(nn.Module):
    """Any branch without a norm, times a learned scale that starts at zero, added to the input.

    ``shortcut(x) + scale * branch(x)``: the identity at initialization without a norm, at any depth
    and batch size, one row included. The first step moves the scale alone; from the second on the
    branch learns, too.

    Args:
        branch: any module; its last layer must not be zero as well, or nothing ever learns.
        shortcut: maps the input to the shape of the branch's output; ``None`` is the input itself.

    Attributes:
        scale: the learned factor, a scalar parameter. Without weight decay it is free to grow.

    Shape:
        as the branch: for ``shortcut=None`` it keeps the shape of its input.

    Source:
        De, Smith 2020, arXiv:2002.10444 (SkipInit); Bachlechner et al. 2020, arXiv:2003.04887
        (ReZero).

    Example:
        >>> branch = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> block, rows = ScaledResidual(branch), torch.randn(8, 16)
        >>> torch.equal(block(rows), rows)
        True
    """

    def __init__(self, branch: nn.Module, *, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Add the scaled branch to the shortcut."""
        output: Tensor = self.shortcut(inputs) + self.scale * self.branch(inputs)
        return output


def _dropped(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []


def _conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        same_convolution(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels)
    )
