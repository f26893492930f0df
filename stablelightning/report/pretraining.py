"""Pictures of what a network learned without labels."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from stablelightning.report.statistics import Array, Floats, as_floats
from stablelightning.report.style import COLOURS, INK, new_figure, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Examples side by side: few enough to be looked at.
_EXAMPLES = 8
#: Images in their four turns.
_TURNED = 6
#: Share of the values that the colours of a picture span; noise beyond them is cut off.
_SPAN = (0.5, 99.5)
_TEXT_SIZE = 9.0
_SIDE = 0.92  # inches of an image


def reconstructions(
    inputs: Array, corrupted: Array, reconstructed: Array, *, channels: int | None = None
) -> "Figure":
    """Show inputs, what a corruption left of them, and what was made of that.

    Args:
        inputs: ``(N, C, H, W)`` of 1 or 3 channels, or ``(N, ...)``, whose rows are drawn as lines
            of colours.
        corrupted: the same shape.
        reconstructed: the same shape.
        channels: where the rows are those of square images, their colour channels.

    Example:
        >>> figure = reconstructions(np.eye(4), np.zeros((4, 4)), np.eye(4))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['input', 'corrupted', 'reconstructed']
    """
    named = {"input": inputs, "corrupted": corrupted, "reconstructed": reconstructed}
    arrays = {name: as_floats(array)[:_EXAMPLES] for name, array in named.items()}
    left = 1 - _share(arrays["input"], arrays["reconstructed"])
    before = 1 - _share(arrays["input"], arrays["corrupted"])
    seen = {name: _as_images(array, channels) for name, array in arrays.items()}
    low, high = np.percentile(arrays["input"], _SPAN)
    figure = _rows(arrays, low, high) if seen["input"] is None else _grid(seen, low, high)
    say(
        figure,
        f"Of the variance of these inputs the corrupted ones keep {_percent(before)}, and their "
        f"reconstructions {_percent(left)}",
    )
    return figure


def turned_images(turned: Array, logits: Array) -> "Figure | None":
    """Show images in their four turns, and what was said of each.

    Args:
        turned: ``(4 N, C, S, S)``, all that were not turned first, then all that were turned once,
            as :func:`~stablelightning.functional.rotate.rotate_all_ways` gives them.
        logits: ``(4 N, 4)``.

    Returns:
        ``None`` where there is not one whole set of images, or they have neither 1 nor 3 channels.

    Example:
        >>> figure = turned_images(np.zeros((8, 1, 3, 3)), np.tile(np.eye(4), (2, 1)))
        >>> len(figure.axes)
        8
    """
    pictures, said = _as_images(as_floats(turned), None), as_floats(logits).argmax(1)
    if pictures is None or len(pictures) < 4:
        return None
    number = len(pictures) // 4
    shown = min(number, _TURNED)
    right = said == np.repeat(np.arange(4), number)
    low, high = np.percentile(pictures, _SPAN)
    figure = new_figure(_SIDE * shown + 1.1, 4 * (_SIDE + 0.28) + 0.7)
    for turn, line in enumerate(figure.subplots(4, shown, squeeze=False)):
        for column, axes in enumerate(line):
            place = turn * number + column
            _draw(axes, pictures[place], low, high)
            colour = INK if right[place] else COLOURS[1]
            axes.set_title(f"{90 * said[place]}°", fontsize=_TEXT_SIZE, color=colour, pad=3)
        line[0].set_ylabel(f"turned by {90 * turn}°", fontsize=_TEXT_SIZE, color=INK)
    say(
        figure, f"{right.mean():.0%} of the turns of these {number} images are told (25% is chance)"
    )
    return figure


def _grid(seen: dict[str, Any], low: float, high: float) -> "Figure":
    shown = len(seen["input"])
    figure = new_figure(max(4.0, _SIDE * shown + 0.5), 3 * _SIDE + 0.8)
    for line, (name, images) in zip(
        figure.subplots(3, shown, squeeze=False), seen.items(), strict=True
    ):
        for axes, image in zip(line, images, strict=True):
            _draw(axes, image, low, high)
        line[0].set_ylabel(name, fontsize=_TEXT_SIZE, color=INK)
    return figure


def _rows(arrays: dict[str, Floats], low: float, high: float) -> "Figure":
    figure = new_figure(6.4, 4.4)
    for axes, (name, array) in zip(figure.subplots(3, 1), arrays.items(), strict=True):
        axes.imshow(
            array.reshape(len(array), -1),
            cmap="gray_r",
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(name, fontsize=_TEXT_SIZE, color=INK)
    figure.axes[-1].set_xlabel(
        f"the values of {len(array)} inputs, a line each", fontsize=_TEXT_SIZE, color=INK
    )
    return figure


def _draw(axes: "Axes", image: Floats, low: float, high: float) -> None:
    if image.ndim == 3:
        axes.imshow(((image - low) / max(high - low, 1e-12)).clip(0, 1), interpolation="nearest")
    else:
        axes.imshow(image, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _as_images(array: Floats, channels: int | None) -> Floats | None:
    """``(N, H, W)`` of grey images, ``(N, H, W, 3)`` of coloured ones, ``None`` of what is none."""
    if array.ndim == 2 and channels is not None:
        side = math.isqrt(array.shape[1] // channels)
        if channels * side**2 == array.shape[1]:
            array = array.reshape(len(array), channels, side, side)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        return None
    return array[:, 0] if array.shape[1] == 1 else np.moveaxis(array, 1, -1)


def _share(inputs: Floats, others: Floats) -> float:
    """Squared error over the variance of the inputs about their mean input."""
    spread = ((inputs - inputs.mean(0)) ** 2).sum()
    return float(((inputs - others) ** 2).sum() / spread) if spread > 0 else 0.0


def _percent(share: float) -> str:
    return f"{max(share, 0):.0%}"
