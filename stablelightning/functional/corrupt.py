"""Noise that hides part of an input, so that a network must infer what was there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stablelightning.errors import DataError, RecipeError


def add_gaussian_noise(inputs: Tensor, std: float) -> Tensor:
    """Add independent normal noise to every value.

    Args:
        inputs: floats of any shape.
        std: standard deviation, in the units of the inputs; >= 0.

    Returns:
        A new tensor of the same shape.

    Raises:
        RecipeError: ``std`` is negative.

    Source:
        Vincent et al. 2010, JMLR 11, section 3.3 (isotropic Gaussian noise).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> noisy = add_gaussian_noise(torch.zeros(10000), 0.5)
        >>> round(noisy.std().item(), 2)
        0.5
    """
    if not std >= 0:
        raise RecipeError(f"std must be >= 0, got {std}; 0 adds no noise.")
    return inputs + std * torch.randn_like(inputs)


def mask_values(inputs: Tensor, share: float, *, block: int = 1) -> Tensor:
    """Set values to 0 at random: single ones of rows, squares of pixels of images.

    Of images ``(N, C, H, W)`` all channels of a pixel go together, and pixels in squares of
    ``block`` by ``block``; of any other shape, each value by itself.

    Args:
        inputs: floats ``(N, ...)``; 0 should stand for "nothing known", as it does where inputs are
            standardised.
        share: probability of a value, or a square, to go; in [0, 1).
        block: side of the squares in pixels, >= 1; only for images.

    Returns:
        A new tensor of the same shape.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: ``block`` > 1, and the inputs are no images.

    Source:
        Vincent et al. 2010, JMLR 11, section 3.3 (masking noise); squares: Pathak et al. 2016,
        arXiv:1604.07379.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> masked = mask_values(torch.ones(1, 3, 4, 4), 0.5, block=2)
        >>> masked.unique().tolist(), bool((masked[0, 0] == masked[0, 2]).all())
        ([0.0, 1.0], True)
    """
    _check_share(share)
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise RecipeError(f"block must be a whole number of pixels >= 1, got {block!r}.")
    if inputs.ndim != 4:
        if block > 1:
            raise DataError(
                f"squares are cut out of images (N, C, H, W), got {tuple(inputs.shape)}; set block "
                "to 1, or let the data module give images."
            )
        return inputs * _kept(inputs.shape, share, like=inputs)
    height, width = inputs.shape[2:]
    # One square more than fits: the grid is shifted, so that every pixel can be at an edge.
    grid = (len(inputs), 1, -(-height // block) + 1, -(-width // block) + 1)
    squares = F.interpolate(_kept(grid, share, like=inputs), scale_factor=block)
    down, right = torch.randint(block, (2,)).tolist()
    return inputs * squares[:, :, down : down + height, right : right + width]


def salt_and_pepper(inputs: Tensor, share: float) -> Tensor:
    """Set values at random to the smallest or the largest one of the batch, as likely as not.

    Args:
        inputs: floats of any shape.
        share: probability of a value to be replaced; in [0, 1).

    Returns:
        A new tensor of the same shape.

    Raises:
        RecipeError: ``share`` is out of its range.

    Source:
        Vincent et al. 2010, JMLR 11, section 3.3.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> salt_and_pepper(torch.tensor([0.0, 5.0, 5.0, 5.0, 9.0]), 0.6).tolist()
        [0.0, 9.0, 5.0, 0.0, 9.0]
    """
    _check_share(share)
    ends = torch.stack([inputs.amin(), inputs.amax()])
    drawn = ends[torch.randint(2, inputs.shape, device=inputs.device)]
    return torch.where(_kept(inputs.shape, share, like=inputs).bool(), inputs, drawn)


def _kept(shape: tuple[int, ...], share: float, *, like: Tensor) -> Tensor:
    drawn = torch.rand(shape, device=like.device, dtype=torch.float32)
    return (drawn >= share).to(like.dtype)


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise RecipeError(f"share must be in [0, 1), got {share}; 0 leaves the inputs as they are.")
