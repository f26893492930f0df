"""Random views of images and rows, drawn for each row of a batch by itself, all rows at once."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stablelightning.errors import DataError, RecipeError

#: Weights of red, green and blue in what the eye takes for brightness (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
#: Red, green and blue to brightness and two axes of colour, in which a hue is an angle.
_TO_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
#: A blur is cut off where its bell has fallen to a hundredth.
_REACH = 3.0


def random_crops(
    images: Tensor,
    *,
    area: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
    rotation: float = 0.0,
) -> Tensor:
    """Cut a random window out of each image, and bring it to the size of the image.

    The window's area and the logarithm of its aspect ratio are uniform, as is its place; it is
    turned and mirrored in the same bilinear reading. A window that is turned may look beyond the
    border, where the nearest pixel goes on.

    Args:
        images: ``(N, C, height, width)``, of any scale; floating point.
        area: smallest and largest share of the image's area, in (0, 1].
        ratio: smallest and largest width over height, > 0.
        flip: probability of mirroring left and right, in [0, 1].
        rotation: largest turn to either side, in degrees.

    Returns:
        Images of the same shape and dtype.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: these are no images.

    Source:
        Szegedy et al. 2014, arXiv:1409.4842, section 6.

    Example:
        >>> random_crops(torch.rand(4, 1, 8, 8), area=(0.5, 1.0)).shape
        torch.Size([4, 1, 8, 8])
    """
    _check_images(images)
    _check_range("area", area, least=0.0, most=1.0)
    _check_range("ratio", ratio, least=0.0, most=math.inf)
    _check_probability("flip", flip)
    width, height = _windows(images, area, ratio)
    # Positions reach from -1 to 1 along either axis; a window of size s has room 1 - s each way.
    across = (1 - width) * _uniform(images, -1.0, 1.0)
    down = (1 - height) * _uniform(images, -1.0, 1.0)
    angle = _uniform(images, -rotation, rotation).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    mirror = torch.where(_chosen(images, flip), -1.0, 1.0)
    tall = images.shape[2] / images.shape[3]  # a turn is one of pixels, not of shares of the sides
    first = torch.stack([mirror * width * cos, -height * sin * tall, across], 1)
    second = torch.stack([mirror * width * sin / tall, height * cos, down], 1)
    theta = torch.stack([first, second], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    grid = grid.to(images.dtype)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def random_colours(
    images: Tensor,
    *,
    strength: float = 1.0,
    probability: float = 0.8,
    grey: float = 0.2,
    zero: Tensor | float = 0.0,
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, or take its colour away.

    Factors of brightness, contrast and saturation are uniform in ``1 +- 0.8 strength`` and the hue
    turns by up to ``72 strength`` degrees either way, after which some images are made grey. All
    of these are linear in the pixels of an image, and are done in one product: a hue is turned
    around the grey axis at equal brightness, and nothing is clamped, so that standardized images
    stay what they are. Images with one channel have brightness and contrast only; others than one
    or three channels likewise.

    Args:
        images: ``(N, C, height, width)``; floating point.
        strength: 1 is strong, 0.5 usual for small images; in [0, 1].
        probability: of changing an image at all, in [0, 1].
        grey: probability of making an image grey, in [0, 1].
        zero: what black is in the units of ``images``: 0, or ``-mean / std`` for images that
            were standardized, a number or ``(C,)``.

    Returns:
        Images of the same shape and dtype.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: these are no images.

    Source:
        Chen et al. 2020, arXiv:2002.05709, appendix A.

    Example:
        >>> images = random_colours(torch.rand(4, 3, 8, 8), grey=1.0)
        >>> torch.allclose(images[:, 0], images[:, 2], atol=1e-6)
        True
    """
    _check_images(images)
    for name, value in {"strength": strength, "probability": probability, "grey": grey}.items():
        _check_probability(name, value)
    channels = images.shape[1]
    low, high, turn = 1 - 0.8 * strength, 1 + 0.8 * strength, 72.0 * strength
    factors = [_uniform(images, low, high) for _ in range(3)]
    hue = _uniform(images, -turn, turn).deg2rad()
    changed = _chosen(images, probability)
    brightness, contrast, saturation = (torch.where(changed, f, 1.0) for f in factors)
    hue = torch.where(changed, hue, 0.0)
    colourless = _chosen(images, grey)
    mix = torch.eye(channels, device=images.device).expand(len(images), -1, -1)
    luma = torch.full((channels,), 1 / channels, device=images.device)
    if channels == 3:
        luma = torch.tensor(_LUMA, device=images.device)
        mix = _colour_mix(torch.where(colourless, 0.0, saturation), hue)
    black = torch.as_tensor(zero, dtype=torch.float32, device=images.device)
    pixels = images.float().flatten(2) - black.expand(channels)[:, None]
    mean = (luma @ pixels).mean(1)[:, None, None]
    # Contrast is about the mean brightness, which the mixing of colours leaves as it is.
    scale = (brightness * contrast)[:, None, None]
    shifted = ((1 - contrast) * brightness)[:, None, None] * mean
    out = torch.baddbmm(shifted.expand(-1, channels, 1), scale * mix, pixels)
    return (out + black.expand(channels)[:, None]).view_as(images).to(images.dtype)


def random_blur(
    images: Tensor, *, probability: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)
) -> Tensor:
    """Blur some images of a batch by a Gaussian, each by its own.

    Args:
        images: ``(N, C, height, width)``; floating point.
        probability: of blurring an image, in [0, 1].
        sigma: smallest and largest standard deviation of the Gaussian, in pixels, > 0.

    Returns:
        Images of the same shape and dtype.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: these are no images.

    Source:
        Chen et al. 2020, arXiv:2002.05709, appendix A.

    Example:
        >>> image = torch.zeros(1, 1, 9, 9).index_fill(2, torch.tensor(4), 1.0)
        >>> bool(random_blur(image, probability=1.0, sigma=(1, 1)).amax() < 0.5)
        True
    """
    _check_images(images)
    _check_probability("probability", probability)
    _check_range("sigma", sigma, least=0.0, most=math.inf)
    chosen = _chosen(images, probability).nonzero()[:, 0]
    if not len(chosen):
        return images
    some = images[chosen]
    widths = _uniform(some, *sigma)
    radius = min(max(1, math.ceil(_REACH * sigma[1])), min(images.shape[2:]) - 1)
    steps = torch.arange(-radius, radius + 1, device=images.device)
    bells = torch.exp(-0.5 * (steps / widths[:, None]).square())
    bells = (bells / bells.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    bells = bells.to(images.dtype)[:, None]
    blurred = some.flatten(0, 1)[None]  # every channel of every image is a group of its own
    groups = blurred.shape[1]
    across = F.pad(blurred, (radius, radius, 0, 0), mode="reflect")
    blurred = F.conv2d(across, bells[..., None, :], groups=groups)
    down = F.pad(blurred, (0, 0, radius, radius), mode="reflect")
    blurred = F.conv2d(down, bells[..., None], groups=groups)
    return images.index_copy(0, chosen, blurred.view_as(some))


def random_corruption(rows: Tensor, *, share: float = 0.3) -> Tensor:
    """Take some numbers of each row from other rows of the batch, as if these had been its own.

    What comes in has the distribution of its own column, whatever its scale.

    Args:
        rows: ``(N, ...)``; columns are everything behind the first axis.
        share: probability of replacing a number, in [0, 1].

    Returns:
        Rows of the same shape and dtype.

    Raises:
        RecipeError: ``share`` is no probability.

    Source:
        Bahri et al. 2021, arXiv:2106.15147, section 3.

    Example:
        >>> rows = torch.arange(4.0)[:, None].expand(4, 3)
        >>> set(random_corruption(rows, share=0.5).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
        True
    """
    _check_probability("share", share)
    if not len(rows):
        return rows
    flat = rows.reshape(len(rows), -1)
    others = torch.randint(len(rows), flat.shape, device=rows.device)
    replaced = torch.rand(flat.shape, device=rows.device) < share
    return torch.where(replaced, flat.gather(0, others), flat).view(rows.shape)


# ---- what is drawn ------------------------------------------------------------------------------


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """One number for each image, in float32 whatever the images are."""
    return torch.empty(len(images), device=images.device).uniform_(low, high)


def _chosen(images: Tensor, probability: float) -> Tensor:
    return torch.rand(len(images), device=images.device) < probability


def _windows(
    images: Tensor, area: Sequence[float], ratio: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Width and height of each window, as shares of the image's."""
    share = _uniform(images, *area)
    aspect = _uniform(images, math.log(ratio[0]), math.log(ratio[1])).exp()
    height, width = images.shape[2:]
    aspect = aspect * height / width  # of shares of the sides, no longer of pixels
    # A window that would stick out keeps its area as far as it can.
    aspect = aspect.clamp(share, 1 / share)
    return (share * aspect).sqrt().clamp(max=1.0), (share / aspect).sqrt().clamp(max=1.0)


def _colour_mix(saturation: Tensor, hue: Tensor) -> Tensor:
    """How each image's channels are mixed, ``(N, 3, 3)``: brightness stays, colour is turned."""
    to_yiq = torch.tensor(_TO_YIQ, device=hue.device)
    cos, sin = saturation * hue.cos(), saturation * hue.sin()
    nothing, one = torch.zeros_like(hue), torch.ones_like(hue)
    rows = [(one, nothing, nothing), (nothing, cos, -sin), (nothing, sin, cos)]
    turned = torch.stack([torch.stack(row, 1) for row in rows], 1)
    mix: Tensor = torch.linalg.inv(to_yiq) @ turned @ to_yiq
    return mix


# ---- what is refused ----------------------------------------------------------------------------


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            "images must be floating point (N, channels, height, width), got "
            f"{images.dtype} of shape {tuple(images.shape)}; for other rows there is "
            "random_corruption."
        )


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise RecipeError(f"{name} must be in [0, 1], got {value}; 0 turns it off.")


def _check_range(name: str, pair: Sequence[float], *, least: float, most: float) -> None:
    if len(pair) != 2 or not least < pair[0] <= pair[1] <= most:
        bound = f" and at most {most:g}" if math.isfinite(most) else ""
        raise RecipeError(
            f"{name} must be two numbers above {least:g}{bound}, the smaller first, got "
            f"{tuple(pair)}; two equal ones draw nothing."
        )
