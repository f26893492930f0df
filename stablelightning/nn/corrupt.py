"""Corruption of inputs as modules, which a denoising autoencoder is given by name."""

from torch import Tensor, nn

from stablelightning.errors import RecipeError
from stablelightning.functional.corrupt import add_gaussian_noise, mask_values, salt_and_pepper


class GaussianNoise(nn.Module):
    """Independent normal noise on every value, in training and in evaluation.

    Args:
        std: standard deviation, in the units of the inputs (1 is as much as there is of the image
            itself, where inputs are standardised); > 0.

    Shape:
        Any, and the same.

    Raises:
        RecipeError: ``std`` is not positive.

    Source:
        Vincent et al. 2010, JMLR 11, section 3.3.

    Example:
        >>> import torch
        >>> GaussianNoise(0.5)(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, std: float = 0.5) -> None:
        super().__init__()
        if isinstance(std, bool) or not isinstance(std, int | float) or not std > 0:
            raise RecipeError(f"std must be > 0, got {std!r}; half of the inputs' own is usual.")
        self.std = std

    def forward(self, inputs: Tensor) -> Tensor:
        """Add noise."""
        return add_gaussian_noise(inputs, self.std)

    def extra_repr(self) -> str:
        """The setting, for ``print``."""
        return f"std={self.std}"


class MaskingNoise(nn.Module):
    """Values, or squares of an image, set to 0 at random, in training and in evaluation.

    Args:
        share: probability of a value to go, in (0, 1).
        block: side in pixels of the squares that go together, >= 1; above 1 only for images.
            Squares cannot be filled in from the pixels beside them: a harder task.

    Shape:
        ``(N, ...)``, and the same; images are ``(N, C, H, W)``.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``forward``: squares of what are no images.

    Source:
        Vincent et al. 2010, JMLR 11, section 3.3; squares: Pathak et al. 2016, arXiv:1604.07379.

    Example:
        >>> import torch
        >>> MaskingNoise(0.5, block=4)(torch.ones(2, 1, 8, 8)).unique().numel() <= 2
        True
    """

    def __init__(self, share: float = 0.5, *, block: int = 1) -> None:
        super().__init__()
        _check_share(share)
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise RecipeError(f"block must be a whole number of pixels >= 1, got {block!r}.")
        self.share = share
        self.block = block

    def forward(self, inputs: Tensor) -> Tensor:
        """Mask."""
        return mask_values(inputs, self.share, block=self.block)

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        return f"share={self.share}, block={self.block}"


class SaltAndPepperNoise(nn.Module):
    """Values set at random to the smallest or the largest of the batch.

    Args:
        share: probability of a value to be replaced, in (0, 1).

    Shape:
        Any, and the same.

    Raises:
        RecipeError: ``share`` is out of its range.

    Source:
        Vincent et al. 2010, JMLR 11, section 3.3.

    Example:
        >>> import torch
        >>> SaltAndPepperNoise(0.2)(torch.randn(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        _check_share(share)
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        """Replace values."""
        return salt_and_pepper(inputs, self.share)

    def extra_repr(self) -> str:
        """The setting, for ``print``."""
        return f"share={self.share}"


def _check_share(share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise RecipeError(f"share must be in (0, 1), got {share!r}; 0.5 hides half of the input.")
