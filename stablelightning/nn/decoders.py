"""Decoders: from features back to what they were made of."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from stablelightning.errors import ModelError
from stablelightning.nn.settings import check_sizes

#: The side from which an image grows, in pixels, where features have no places of their own.
_FIRST_SIDE = 4
#: Channels in a group of a norm: whatever batch or process, a row is normalised by itself.
_GROUP = 8


class DenseDecoder(nn.Module):
    """A perceptron from features to inputs of any shape.

    Args:
        feature_shape: of one row of the features; flattened.
        output_shape: of one row of what is to be made.
        hidden: width of each hidden layer, each >= 1; empty for a linear map.

    Shape:
        ``(N, *feature_shape)`` to ``(N, *output_shape)``.

    Raises:
        RecipeError: a size is not positive.

    Source:
        Vincent et al. 2010, JMLR 11, section 2.2.

    Example:
        >>> import torch
        >>> DenseDecoder((16,), (8, 3))(torch.zeros(2, 16)).shape
        torch.Size([2, 8, 3])
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        output_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (256,),
    ) -> None:
        super().__init__()
        check_sizes(feature_shape=feature_shape, output_shape=output_shape, hidden=hidden)
        self.output_shape = tuple(output_shape)
        widths = [math.prod(feature_shape), *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(output_shape)))

    def forward(self, features: Tensor) -> Tensor:
        """Decode."""
        decoded: Tensor = self.layers(features.flatten(1))
        return decoded.view(len(decoded), *self.output_shape)


class ConvDecoder(nn.Module):
    """Grows an image from features: each step doubles its sides, then convolves.

    Features ``(F,)`` become a small map by a linear layer, about 4 pixels wide; maps ``(C, h, w)``
    are taken as they are. Sides are enlarged by repeating pixels and convolving, which leaves no
    checkerboard; norms are over groups of channels, so that no row depends on another.

    Args:
        feature_shape: of one row of the features: ``(F,)``, ``(C, h, w)``, or anything, flattened.
        output_shape: ``(channels, height, width)`` of the images, any sizes >= 1.
        width: channels of the last map, >= 8; a step earlier it is twice as many.
        most: the most channels that a map has, >= ``width``.

    Shape:
        ``(N, *feature_shape)`` to ``(N, channels, height, width)``.

    Raises:
        RecipeError: a size is not positive.
        ModelError: ``output_shape`` is not that of an image.

    Source:
        Odena, Dumoulin, Olah 2016, distill.pub/2016/deconv-checkerboard (growing by repetition).

    Example:
        >>> import torch
        >>> ConvDecoder((512,), (3, 50, 70))(torch.zeros(2, 512)).shape
        torch.Size([2, 3, 50, 70])
        >>> ConvDecoder((32, 4, 4), (1, 16, 16))(torch.zeros(2, 32, 4, 4)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        feature_shape: Sequence[int],
        output_shape: Sequence[int],
        *,
        width: int = 32,
        most: int = 256,
    ) -> None:
        super().__init__()
        check_sizes(feature_shape=feature_shape, output_shape=output_shape, width=width, most=most)
        if len(output_shape) != 3:
            raise ModelError(
                "an image must be (channels, height, width) to be grown, got "
                f"{tuple(output_shape)}; use DenseDecoder."
            )
        channels, height, width_of_image = output_shape
        sides = _sides(tuple(feature_shape), (height, width_of_image))
        widths = [_rounded(min(most, width * 2**n)) for n in reversed(range(len(sides)))]
        self.first = _first(tuple(feature_shape), widths[0], sides[0])
        steps: list[nn.Module] = [_NormedReLU(widths[0])]
        for (inputs, outputs), size in zip(pairwise(widths), sides[1:], strict=True):
            grown = nn.Upsample(size=size, mode="nearest")
            steps += [grown, nn.Conv2d(inputs, outputs, 3, padding=1), _NormedReLU(outputs)]
        self.steps = nn.Sequential(*steps)
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Decode."""
        decoded: Tensor = self.last(self.steps(self.first(features)))
        return decoded


class _NormedReLU(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.GroupNorm(channels // _GROUP, channels), nn.ReLU())


def _rounded(channels: int) -> int:
    return max(_GROUP, channels // _GROUP * _GROUP)


def _sides(feature_shape: tuple[int, ...], image: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of every map, from the first to the image's; each at most doubles."""
    if len(feature_shape) == 3:
        first = feature_shape[1:]
        ratios = [a / b for a, b in zip(image, first, strict=True)]
        doublings = max(0, math.ceil(math.log2(max(ratios))))
        between = [(_halved(image[0], n), _halved(image[1], n)) for n in reversed(range(doublings))]
        return [(first[0], first[1]), *(between or [image])]
    doublings = max(0, math.floor(math.log2(min(image) / _FIRST_SIDE)))
    return [(_halved(image[0], n), _halved(image[1], n)) for n in reversed(range(doublings + 1))]


def _halved(side: int, times: int) -> int:
    return -(-side // (1 << times))


def _first(feature_shape: tuple[int, ...], channels: int, side: tuple[int, int]) -> nn.Module:
    if len(feature_shape) == 3:
        return nn.Conv2d(feature_shape[0], channels, 1)
    places = math.prod(side)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(feature_shape), channels * places),
        nn.Unflatten(1, (channels, *side)),
    )
