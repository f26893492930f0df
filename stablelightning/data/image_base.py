"""What data modules of images have in common: how a file becomes what a network takes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stablelightning.data.base import SplitDataModule, at_least
from stablelightning.data.photographs import read_photograph
from stablelightning.data.readable import Unreadable, check_unreadable
from stablelightning.errors import DataError, RecipeError
from stablelightning.model.preprocessing import Preprocessing, preprocessing_of
from stablelightning.optional import require

#: What images are like for most backbones: the statistics are those of ImageNet's training images.
IMAGENET = Preprocessing(
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), image_size=224, crop_share=1.0
)
_CHANNELS = 3
# The smallest share of an image's area that a random crop keeps: light, so that small objects stay.
_CROP_AREA = 0.7
# A JPEG is decoded to at least so many times the pixels that are needed, so that resizing it is as
# good as from all of its pixels.
_SPARE = 2


class ImageDataModule(SplitDataModule):
    """Colour images from files, prepared as the weights of the network want them.

    Size, mean and deviation are the first that is given: by a setting here; by the checkpoint that
    was loaded; by the network that is trained
    (:func:`~stablelightning.model.preprocessing.preprocessing_of`); by ImageNet at 224 pixels.

    Args:
        image_size: height and width that the model sees, in pixels, >= 1; ``None`` to ask on.
        mean: mean of each channel, in [0, 1] units, that is subtracted; ``None`` to ask on.
        std: standard deviation of each channel, > 0, that is divided by; ``None`` to ask on.
        augment: crop and mirror training images at random.
        unreadable: ``"refuse"`` or ``"skip"`` images that cannot be read.
        **settings: those of :class:`~stablelightning.data.base.SplitDataModule`.

    Raises:
        RecipeError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        image_size: int | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        augment: bool,
        unreadable: Unreadable,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if image_size is not None:
            at_least("image_size", image_size, 1)
        lengths = {len(given) for given in (mean, std) if given is not None}
        if not lengths <= {_CHANNELS} or (std is not None and min(std) <= 0):
            raise RecipeError(
                "mean and std must have three numbers each, for red, green and blue, and std must "
                f"be > 0, got mean={_listed(mean)}, std={_listed(std)}; null takes those of the "
                "network's weights."
            )
        check_unreadable(unreadable)
        self.image_size = image_size
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.augment = augment
        self.unreadable: Unreadable = unreadable
        self._restored: Preprocessing | None = None

    @property
    def in_channels(self) -> int:
        """Number of colour channels: 3; grey images are repeated on each."""
        return _CHANNELS

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared, by whoever has a say in it.

        Raises:
            DataError: the network's weights are for images of other than three channels.
        """
        module = getattr(self.trainer, "lightning_module", None)
        network = None if module is None else preprocessing_of(module)
        found = self._restored or network or IMAGENET
        if len(found.mean) != _CHANNELS:
            raise DataError(
                f"folders of images give three channels, got a network for {len(found.mean)}; take "
                "another backbone, or set mean and std."
            )
        return replace(
            found,
            image_size=self.image_size or found.image_size,
            mean=self.mean or found.mean,
            std=self.std or found.std,
        )

    def transform(self, *, augment: bool) -> Callable[[Any], Tensor]:
        """Return what makes a normalised tensor ``(3, H, W)`` of a Pillow image.

        Args:
            augment: crop and mirror at random; else the middle is taken.

        Raises:
            MissingPackageError: torchvision is missing or broken.
        """
        v2 = require("torchvision.transforms.v2", extra="vision")
        wanted = self.preprocessing
        size = (wanted.image_size, wanted.image_size)
        how = {"interpolation": v2.InterpolationMode(wanted.interpolation)}
        if augment:
            crop = v2.RandomResizedCrop(size, scale=(_CROP_AREA, 1.0), **how)
            shape = [crop, v2.RandomHorizontalFlip()]
        else:
            shape = [v2.Resize(wanted.resize_size, **how), v2.CenterCrop(size)]
        number = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        transform: Callable[[Any], Tensor] = v2.Compose(
            [*shape, *number, v2.Normalize(list(wanted.mean), list(wanted.std))]
        )
        return transform

    def images(self, files: Sequence[str], *, augment: bool = False) -> "Images":
        """Return the images of some files, prepared, without classes."""
        least = _SPARE * self.preprocessing.resize_size
        return Images(files, self.transform(augment=augment), least_side=least)

    def state_dict(self) -> dict[str, Any]:
        """Return how images are prepared, for the checkpoint; plain types."""
        kept = asdict(self.preprocessing)
        return {"preprocessing": {**kept, "mean": list(kept["mean"]), "std": list(kept["std"])}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Prepare images as in the training of a checkpoint; what is set here comes first."""
        if kept := state_dict.get("preprocessing"):
            self._restored = Preprocessing(**kept)


class Images(Dataset[Any]):
    """Images without a class.

    Args:
        files: their paths.
        transform: makes a tensor of a Pillow image.
        least_side: pixels to which a large JPEG may be decoded, see
            :func:`~stablelightning.data.photographs.read_photograph`.
    """

    def __init__(
        self, files: Sequence[str], transform: Callable[[Any], Tensor], *, least_side: int
    ) -> None:
        self.files = list(files)
        self.transform = transform
        self.least_side = least_side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        return self.load(row)

    def load(self, row: int) -> Tensor:
        """Read and prepare one image.

        Raises:
            DataError: it cannot be read.
        """
        return self.transform(read_photograph(self.files[row], least_side=self.least_side))


class LabelledImages(Dataset[Any]):
    """Images with the number of their class.

    Args:
        images: the images.
        labels: class of each of them.
    """

    def __init__(self, images: Images, labels: Sequence[int]) -> None:
        self.images = images
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images.load(row), self.labels[row]


def _listed(numbers: Sequence[float] | None) -> list[float] | None:
    return None if numbers is None else list(numbers)
