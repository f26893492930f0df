"""Folders of images, one folder a class, as a Lightning data module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stablelightning.data.base import Part, SplitDataModule, at_least
from stablelightning.data.folders import ImageFiles, Sample, list_images, unlabelled_images
from stablelightning.errors import DataError, RecipeError
from stablelightning.optional import require

# Statistics of ImageNet's training images: what most pretrained backbones were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The smallest share of an image's area that a random crop keeps: light, so that small objects stay.
_CROP_AREA = 0.7


class ImageFolderData(SplitDataModule):
    """Colour images in folders, one folder a class.

    Two layouts are understood. *One tree*, ``root/cat/1.jpg``, is split by the seed, every class in
    the same proportions. *Split folders*, ``root/train/cat/1.jpg`` with ``root/val`` and
    ``root/test`` beside it, are taken as they are; of these two, one that is missing is drawn from
    the training images by its fraction. Folders whose name starts with a dot or two underscores are
    passed over.

    Training images are cropped at random (at least 70% of their area) and mirrored; the others are
    resized to ``image_size`` on their shorter side and cropped in the middle. Batches are
    ``(inputs, target)``: inputs float32 ``(B, 3, image_size, image_size)``, normalised; target
    int64 ``(B,)``. With ``predict_path``, ``predict`` yields bare inputs.

    Args:
        root: the folder.
        image_size: height and width that the model sees, in pixels; >= 1.
        batch_size: images of a batch, on each process.
        mean: mean of each channel, in [0, 1] units, that is subtracted; ImageNet's by default.
        std: standard deviation of each channel, > 0, that is divided by.
        augment: crop and mirror training images at random.
        val_fraction: share of the images that validate, if there is no ``root/val``.
        test_fraction: share of the images that test, if there is no ``root/test``.
        seed: seed of the split.
        num_workers: processes that read and decode images.
        predict_path: an image, or a folder of images at any depth, that ``predict`` answers
            without knowing classes; ``None`` to predict the test images.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``setup``: a folder is missing or has no images; while loading: an image
            cannot be read.
        MissingPackageError: from ``setup``: torchvision is missing or broken.

    Example:
        >>> data = ImageFolderData("my_images", image_size=96, num_workers=0)
        >>> data.image_size, data.hparams.root
        (96, 'my_images')
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int = 224,
        batch_size: int = 32,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        augment: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 2,
        predict_path: str | Path | None = None,
    ) -> None:
        # Checkpoints hold the settings and are read back without pickle: plain types only.
        root = str(root)
        predict_path = None if predict_path is None else str(predict_path)
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        at_least("image_size", image_size, 1)
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise RecipeError(
                "mean and std must have three numbers each, for red, green and blue, and std must "
                f"be > 0, got mean={list(mean)}, std={list(std)}."
            )
        self.root = root
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.augment = augment
        self.predict_path = predict_path
        self._files: ImageFiles | None = None
        self._class_names: tuple[str, ...] | None = None

    def setup(self, stage: str | None = None) -> None:
        """List and split the files, once; only ``predict`` of other images can do without."""
        if stage != "predict" or self.predict_path is None:
            self._listed()
        else:
            unlabelled_images(Path(self.predict_path))  # told here, before a model runs

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Numbers that a model should give for an image: one for each class."""
        return self.num_classes

    @property
    def in_channels(self) -> int:
        """Number of colour channels: 3; grey images are repeated on each."""
        return 3

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class folder, in the order of its number (alphabetical)."""
        return self._class_names or self._listed().class_names

    @property
    def test_rows(self) -> Tensor:
        """Place of every test image in the sorted list of the files it was drawn from.

        That list holds the images under ``root``, ``root/train`` or ``root/test``, class by class;
        :attr:`test_files` gives the paths themselves.
        """
        return self._listed().test_rows

    @property
    def test_files(self) -> list[str]:
        """Path of every test image, in test order."""
        return [path for path, _ in self._listed().test]

    @property
    def predict_files(self) -> list[str]:
        """Path of every image under ``predict_path``, in the order of the predictions."""
        if self.predict_path is None:
            return self.test_files
        return unlabelled_images(Path(self.predict_path))

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return the images of one split; ``None`` if it has none."""
        samples: list[Sample] = getattr(self._listed(), name)
        if not samples:
            return None
        augment = self.augment and name == "train"
        return _LabelledImages(samples, self._transform(augment=augment))

    def predict_part(self) -> Dataset[Any] | None:
        """Return the images of ``predict_path``, without classes; without one, the test split."""
        if self.predict_path is None:
            return self.part("test")
        return _Images(self.predict_files, self._transform(augment=False))

    def state_dict(self) -> dict[str, Any]:
        """Return the class names, for the checkpoint."""
        if self._class_names is None and self._files is None:
            return {}
        return {"class_names": list(self.class_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the classes from a checkpoint, so that numbers mean what they meant in its training.

        Raises:
            DataError: the class folders are not those of the checkpoint.
        """
        if not state_dict:
            return
        self._class_names = tuple(state_dict["class_names"])
        if self._files is not None:
            self._check(self._files)

    def _listed(self) -> ImageFiles:
        if self._files is None:
            files = list_images(
                Path(self.root),
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.seed,
            )
            self._check(files)
            self._files = files
        return self._files

    def _check(self, files: ImageFiles) -> None:
        if self._class_names not in (None, files.class_names):
            raise DataError(
                "class folders must be those that the checkpoint was trained on "
                f"({', '.join(self._class_names or ())}), got {', '.join(files.class_names)} in "
                f"{self.root}; correct root."
            )

    def _transform(self, *, augment: bool) -> Callable[[Any], Tensor]:
        v2 = require("torchvision.transforms.v2", extra="vision")
        size = (self.image_size, self.image_size)
        if augment:
            shape = [v2.RandomResizedCrop(size, scale=(_CROP_AREA, 1.0)), v2.RandomHorizontalFlip()]
        else:
            shape = [v2.Resize(self.image_size), v2.CenterCrop(size)]
        number = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        transform: Callable[[Any], Tensor] = v2.Compose(
            [*shape, *number, v2.Normalize(list(self.mean), list(self.std))]
        )
        return transform


class _Images(Dataset[Any]):
    """Images without a class."""

    def __init__(self, files: list[str], transform: Callable[[Any], Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Any:
        return self.load(row)

    def load(self, row: int) -> Tensor:
        read = require("torchvision.datasets.folder", extra="vision").default_loader
        try:
            image = read(self.files[row])
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three
            raise DataError(
                f"an image must be readable, got {self.files[row]!r} ({error}); "
                "repair or remove the file."
            ) from error
        return self.transform(image)


class _LabelledImages(_Images):
    """Images with the number of their class."""

    def __init__(self, samples: list[Sample], transform: Callable[[Any], Tensor]) -> None:
        super().__init__([file for file, _ in samples], transform)
        self.labels = [label for _, label in samples]

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.load(row), self.labels[row]
