"""Random views of a batch as modules: for images, and for rows of any other kind."""

import torch
from torch import Tensor, nn

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.augment import (
    random_blur,
    random_colours,
    random_corruption,
    random_crops,
)

#: Below this side, in pixels, an image shows one thing that fills it, and a window that is much
#: smaller would show nothing of it.
_SMALL = 16
#: From this side on there are details that a blur takes away.
_LARGE = 64
#: Smallest share of an image's area that a window has.
_AREA, _AREA_OF_SMALL = 0.2, 0.4
#: Largest turn of small grey images, in degrees: handwriting leans by as much.
_LEAN = 15.0


class ImageViews(nn.Module):
    """Draw a random view of every image: a window, a mirror image, other colours, a blur.

    What fits is read from the images where nothing is said: colour images are mirrored, grey ones
    (digits, letters, X-rays) are not, but are turned a little where they are small; windows are
    large where images are small; only images of 64 pixels or more are blurred.

    Each image has draws of its own, all at once and on the images' device. Give batches in whatever
    units they are in. It draws in eval as well as in training.

    Args:
        area: smallest share of the image's area that is shown, in (0, 1]; ``None`` for 0.2, or 0.4
            below 16 pixels.
        flip: probability of mirroring left and right; ``None`` for 0.5 where there are three
            channels, else 0.
        rotation: largest turn to either side, in degrees; ``None`` for 15 for images below 16
            pixels that are not coloured, else 0.
        colour: strength of changes of brightness, contrast, saturation and hue, in [0, 1]; colour
            images also lose their colour, one in five. 0 for none.
        blur: probability of a blur; ``None`` for 0.5 from 64 pixels on, else 0.
        zero: what black is in the units of the images: ``-mean / std`` where they are standardized.

    Shape:
        ``(N, C, height, width)`` to the same.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``forward``: these are no images.

    Source:
        Chen et al. 2020, arXiv:2002.05709, appendix A.

    Example:
        >>> ImageViews()(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        *,
        area: float | None = None,
        flip: float | None = None,
        rotation: float | None = None,
        colour: float = 0.5,
        blur: float | None = None,
        zero: float = 0.0,
    ) -> None:
        super().__init__()
        if area is not None and not 0 < area <= 1:
            raise RecipeError(f"area must be in (0, 1], got {area}; 1 shows the whole image.")
        if rotation is not None and not 0 <= rotation <= 180:
            raise RecipeError(f"rotation must be in [0, 180] degrees, got {rotation}; 0 for none.")
        for name, value in {"flip": flip, "colour": colour, "blur": blur}.items():
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(f"{name} must be in [0, 1], got {value}; 0 turns it off.")
        self.area, self.flip, self.rotation = area, flip, rotation
        self.colour, self.blur, self.zero = colour, blur, zero

    def forward(self, images: Tensor) -> Tensor:
        """One view of each image, ``(N, C, height, width)``."""
        if images.ndim != 4:
            raise DataError(
                f"views of images need (N, channels, height, width), got {tuple(images.shape)}; "
                "for other rows there is RowViews."
            )
        side, coloured = min(images.shape[2:]), images.shape[1] == 3
        small = side < _SMALL
        least = _given(self.area, _AREA_OF_SMALL if small else _AREA)
        views = random_crops(
            images,
            area=(least, 1.0),
            flip=_given(self.flip, 0.5 if coloured else 0.0),
            rotation=_given(self.rotation, _LEAN if small and not coloured else 0.0),
        )
        if self.colour > 0:
            grey = 0.2 if coloured else 0.0
            views = random_colours(views, strength=self.colour, grey=grey, zero=self.zero)
        blur = _given(self.blur, 0.5 if side >= _LARGE else 0.0)
        return random_blur(views, probability=blur, sigma=(0.1, side / 64 + 0.1))

    def extra_repr(self) -> str:
        """What is not the default."""
        given = {"area": self.area, "flip": self.flip, "rotation": self.rotation}
        given |= {"colour": self.colour, "blur": self.blur}
        return ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)


class RowViews(nn.Module):
    """Draw a random view of every row: some of its numbers come from other rows of the batch.

    For tables, sequences, and anything else whose columns mean the same in every row.

    Args:
        share: probability of replacing a number by that of another row of the batch, in [0, 1].
        noise: standard deviation of what is added, in units of the data, >= 0.

    Shape:
        ``(N, ...)`` to the same.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Bahri et al. 2021, arXiv:2106.15147.

    Example:
        >>> RowViews(share=0.3)(torch.randn(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(self, *, share: float = 0.3, noise: float = 0.0) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise RecipeError(f"share must be in [0, 1], got {share}; 0 replaces nothing.")
        if not noise >= 0:
            raise RecipeError(f"noise must be >= 0, got {noise}; 0 adds none.")
        self.share, self.noise = share, noise

    def forward(self, rows: Tensor) -> Tensor:
        """One view of each row, ``(N, ...)``."""
        views = random_corruption(rows, share=self.share)
        return views + self.noise * torch.randn_like(views) if self.noise else views

    def extra_repr(self) -> str:
        """The settings."""
        return f"share={self.share}, noise={self.noise}"


def _given(setting: float | None, otherwise: float) -> float:
    return otherwise if setting is None else setting
