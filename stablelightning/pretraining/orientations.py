"""Labels that few classes make of themselves: each class in each orientation is one of its own."""

from typing import Any

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.augment import random_crops
from stablelightning.functional.rotate import check_square_images, rotate_all_ways

#: Quarter turns, of the image and of its mirror image.
ORIENTATIONS = 8


class OrientedClasses:
    """Make eight labels of each class: images in four quarter turns, and the same mirrored.

    For pretraining on labels of few classes, which alone ask for few features: five digits can be
    told apart by a stroke or two. Each of them in eight orientations are forty things that look
    alike in parts, and what tells these apart helps with other classes, too. Given to
    :class:`~stablelightning.pretraining.AuxiliaryTask` as ``labels``, with eight times as many
    ``num_labels`` as there are classes.

    Every image is moved and turned a little first, each by itself. A step costs as much as one on
    eight times the batch.

    Args:
        area: smallest share of the image's area that is shown, in (0, 1].
        lean: largest turn beside the quarter turns, in degrees, to either side.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from a call: the batch is no pair of square images and class indices.

    Source:
        Lee, Hwang, Shin 2020, arXiv:1910.05872, section 3 (labels of class and transformation
        together).

    Example:
        >>> images, labels = OrientedClasses()((torch.rand(2, 1, 8, 8), torch.tensor([0, 3])))
        >>> images.shape, labels.unique().tolist()[-2:]
        (torch.Size([16, 1, 8, 8]), [30, 31])
    """

    def __init__(self, *, area: float = 0.7, lean: float = 12.0) -> None:
        if not 0 < area <= 1:
            raise RecipeError(f"area must be in (0, 1], got {area}; 1 shows the whole image.")
        if not 0 <= lean <= 180:
            raise RecipeError(f"lean must be in [0, 180] degrees, got {lean}; 0 for none.")
        self.area = area
        self.lean = lean

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images ``(8N, C, S, S)`` and their labels ``(8N,)`` of a batch ``(images, classes)``."""
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        if not pair or not isinstance(batch[1], Tensor) or batch[1].is_floating_point():
            raise DataError(
                "oriented classes need batches (images, class indices), got "
                f"{type(batch).__name__}; give a data module whose images have classes."
            )
        images, classes = batch
        check_square_images(images, "orientation")
        views = random_crops(images, area=(self.area, 1.0), rotation=self.lean)
        turned, labels = [], []
        for mirrored, side in enumerate((views, views.flip(3))):
            all_ways, quarters = rotate_all_ways(side)
            turned.append(all_ways)
            again = classes.repeat(len(all_ways) // len(classes))
            labels.append(again * ORIENTATIONS + 4 * mirrored + quarters)
        return torch.cat(turned), torch.cat(labels)
