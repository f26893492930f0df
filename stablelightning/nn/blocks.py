"""Blocks without a skip: a weight layer, its non-linearity, and batch norm on either side of it."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from stablelightning.errors import DataError, RecipeError
from stablelightning.nn.settings import check_dropout, check_one_of, check_sizes

#: Where the batch norm of a block stands; ``None`` is nowhere.
BatchNormPlace = Literal["before", "after"] | None


class DenseBlock(nn.Module):
    """A linear layer, batch norm before or after its activation, and dropout.

    Args:
        in_features: number of inputs, >= 1.
        out_features: number of outputs, >= 1.
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.GELU``.
        batch_norm: ``"before"`` the activation, ``"after"`` it, or ``None``. Before it, the linear
            layer has no bias: subtracting the batch's mean would cancel it, and the norm has a
            shift of its own.
        dropout: probability of dropping an output, in [0, 1); last, so that no norm measures what
            was dropped.

    Shape:
        ``(N, in_features)`` to ``(N, out_features)``; without batch norm any leading axes.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``forward``: batch norm met an input that is not ``(N, in_features)``.

    Source:
        Ioffe, Szegedy 2015, arXiv:1502.03167 (batch norm, before the activation, section 3.2).

    Example:
        >>> import torch
        >>> block = DenseBlock(64, 32, batch_norm="before")
        >>> block(torch.randn(8, 64)).shape, block.linear.bias
        (torch.Size([8, 32]), None)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: BatchNormPlace = "before",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, out_features=out_features)
        check_one_of("batch_norm", batch_norm, ("before", "after", None))
        check_dropout(dropout)
        self.linear = nn.Linear(in_features, out_features, bias=batch_norm != "before")
        self.norm = nn.BatchNorm1d(out_features) if batch_norm else nn.Identity()
        self.activation = activation()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.needs_rows = batch_norm is not None
        self.norm_is_last = batch_norm == "after"

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform rows ``(N, in_features)``."""
        if self.needs_rows and inputs.ndim != 2:
            # nn.BatchNorm1d would take the second axis of (N, L, C) for the features.
            raise DataError(
                f"a dense block with batch norm needs rows (N, features), got {inputs.ndim} axes; "
                "flatten them, or set batch_norm=None."
            )
        output: Tensor = self.linear(inputs)
        if self.norm_is_last:
            output = self.norm(self.activation(output))
        else:
            output = self.activation(self.norm(output))
        output = self.dropout(output)
        return output


class ConvBlock(nn.Module):
    """A 2-D convolution and batch norm before or after its activation.

    The padding keeps the size of the image at stride 1, and rounds ``size / stride`` up.

    Args:
        in_channels: channels of the input, >= 1.
        out_channels: channels of the output, >= 1.
        kernel_size: side of the square kernel, odd and >= 1.
        stride: step of the kernel in pixels, >= 1.
        activation: makes the non-linearity, such as ``nn.ReLU`` or ``nn.GELU``.
        batch_norm: ``"before"`` the activation, ``"after"`` it, or ``None``. Before it, the
            convolution has no bias, which the norm would cancel.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Ioffe, Szegedy 2015, arXiv:1502.03167, section 3.2.

    Example:
        >>> import torch
        >>> ConvBlock(3, 16, stride=2)(torch.randn(2, 3, 9, 9)).shape
        torch.Size([2, 16, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: BatchNormPlace = "before",
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels)
        check_one_of("batch_norm", batch_norm, ("before", "after", None))
        self.conv = same_convolution(
            in_channels, out_channels, kernel_size, stride=stride, bias=batch_norm != "before"
        )
        self.norm = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.activation = activation()
        self.norm_is_last = batch_norm == "after"

    def forward(self, images: Tensor) -> Tensor:
        """Transform images ``(N, in_channels, H, W)``."""
        output: Tensor = self.conv(images)
        if self.norm_is_last:
            output = self.norm(self.activation(output))
        else:
            output = self.activation(self.norm(output))
        return output


def same_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    """Make a square 2-D convolution that keeps the size of an image at stride 1.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd: an even one has no middle to pad around.
        stride: step of the kernel in pixels.
        bias: whether to add a bias; none where batch norm follows.

    Raises:
        RecipeError: ``kernel_size`` is even, or one of the two is not positive.

    Example:
        >>> same_convolution(3, 8, 5).padding
        (2, 2)
    """
    if stride < 1:
        raise RecipeError(f"stride must be >= 1, got {stride}; 1 keeps the size of the image.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise RecipeError(
            f"kernel_size must be odd and >= 1, got {kernel_size}; 3 is the usual choice."
        )
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=bias,
    )
