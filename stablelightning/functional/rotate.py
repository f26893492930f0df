"""Quarter turns of images, with the turn as the label."""

import torch
from torch import Tensor

from stablelightning.errors import DataError

#: Turns by 0, 90, 180 and 270 degrees.
QUARTERS = 4


def rotate_all_ways(images: Tensor) -> tuple[Tensor, Tensor]:
    """Turn every image by 0, 90, 180 and 270 degrees, counter-clockwise.

    A quarter turn moves pixels and interpolates nothing, so that no artefact gives it away.

    Args:
        images: ``(N, C, S, S)``.

    Returns:
        The turned images ``(4 N, C, S, S)``, all that were not turned first, then all that were
        turned once, and so on, and the number of quarter turns of each, int64 ``(4 N,)``.

    Raises:
        DataError: these are no images, or they are not square.

    Source:
        Gidaris, Singh, Komodakis 2018, arXiv:1803.07728, section 2.

    Example:
        >>> images = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
        >>> turned, quarters = rotate_all_ways(images)
        >>> turned[1, 0].tolist(), quarters.tolist()
        ([[2.0, 4.0], [1.0, 3.0]], [0, 1, 2, 3])
    """
    check_square_images(images, "rotation")
    turned = torch.cat([torch.rot90(images, number, dims=(2, 3)) for number in range(QUARTERS)])
    quarters = torch.arange(QUARTERS, device=images.device).repeat_interleave(len(images))
    return turned, quarters


def check_square_images(inputs: Tensor, what: str) -> None:
    """Refuse rows, sequences, and images that are not square.

    Args:
        inputs: of a batch.
        what: what needs square images, for the message.

    Raises:
        DataError: they are not ``(N, C, S, S)``.

    Example:
        >>> check_square_images(torch.zeros(2, 3, 8, 8), "rotation")
    """
    if inputs.ndim != 4:
        raise DataError(
            f"{what} needs images (N, C, H, W), got inputs {tuple(inputs.shape)}; let the data "
            "module give images (of DigitsData: image: true), or use the autoencoder, which takes "
            "rows as well."
        )
    if inputs.shape[2] != inputs.shape[3]:
        raise DataError(
            f"{what} needs square images, got {inputs.shape[2]} x {inputs.shape[3]} pixels; crop "
            "them to a square."
        )
