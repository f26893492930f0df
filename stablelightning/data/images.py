"""Folders of images, one folder a class, as a Lightning data module."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from stablelightning.data.base import Part, check_labels_per_class
from stablelightning.data.folders import (
    ImageFiles,
    Sample,
    class_names_in,
    list_images,
    unlabelled_images,
)
from stablelightning.data.image_base import ImageDataModule, LabelledImages
from stablelightning.data.readable import Unreadable
from stablelightning.errors import DataError
from stablelightning.optional import require


class ImageFolderData(ImageDataModule):
    """Colour images in folders, one folder a class.

    Two layouts are understood. *One tree*, ``root/cat/1.jpg``, is split by the seed, every class in
    the same proportions. *Split folders*, ``root/train/cat/1.jpg`` with ``root/val`` and
    ``root/test`` beside it, are taken as they are; of these two, one that is missing is drawn from
    the training images by its fraction. Folders whose name starts with a dot or two underscores,
    and files whose name starts with a dot, are passed over.

    Photographs are turned upright by their EXIF; grey levels, palettes, 16 bits, CMYK and
    transparency (on white) become red, green and blue. Training images are cropped at random (at
    least 70% of their area) and mirrored; the others are resized and cropped in the middle, as the
    network's weights want it. Batches are ``(inputs, target)``: inputs float32
    ``(B, 3, image_size, image_size)``, normalised; target int64 ``(B,)``. With ``predict_path``,
    ``predict`` yields bare inputs.

    Size, mean and deviation are those of the network's weights
    (:func:`~stablelightning.model.preprocessing.preprocessing_of`), or of ImageNet at 224 pixels,
    unless they are set here; they travel in the checkpoint with the names of the classes.

    Args:
        root: the folder.
        image_size: height and width that the model sees, in pixels, >= 1; ``None`` for what the
            weights were trained with.
        batch_size: images of a batch, on each process.
        mean: mean of each channel, in [0, 1] units, that is subtracted; ``None`` likewise.
        std: standard deviation of each channel, > 0, that is divided by; ``None`` likewise.
        augment: crop and mirror training images at random.
        labels_per_class: train on so many images of each class, drawn by the seed; ``None`` for
            all. The other training images are the unlabelled ones (:meth:`unlabelled_part`).
        unreadable: ``"refuse"`` images that cannot be read (truncated and empty ones before
            training, those damaged in the middle when they are loaded), or ``"skip"`` them: all
            images are decoded once, and those that fail are left out, counted and named.
        val_fraction: share of the images that validate, if there is no ``root/val``.
        test_fraction: share of the images that test, if there is no ``root/test``.
        seed: seed of the split.
        num_workers: processes that read and decode images.
        predict_path: an image, or a folder of images at any depth, that ``predict`` answers
            without knowing classes; ``None`` to predict the test images.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``setup``: a folder is missing or has no images, there are no two classes,
            classes differ between the splits, or an image cannot be read.
        MissingPackageError: from ``setup``: torchvision or Pillow is missing or broken.

    Example:
        >>> data = ImageFolderData("my_images", image_size=96, num_workers=0)
        >>> data.preprocessing.image_size, data.hparams.root
        (96, 'my_images')
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int | None = None,
        batch_size: int = 32,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        augment: bool = True,
        labels_per_class: int | None = None,
        unreadable: Unreadable = "refuse",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 2,
        predict_path: str | Path | None = None,
    ) -> None:
        # Checkpoints hold the settings and are read back without pickle: plain types only.
        root = str(root)
        predict_path = None if predict_path is None else str(predict_path)
        check_labels_per_class(labels_per_class)
        super().__init__(
            image_size=image_size,
            mean=mean,
            std=std,
            augment=augment,
            unreadable=unreadable,
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        self.root = root
        self.labels_per_class = labels_per_class
        self.predict_path = predict_path
        self._files: ImageFiles | None = None
        self._predicted: list[str] | None = None
        self._class_names: tuple[str, ...] | None = None

    def setup(self, stage: str | None = None) -> None:
        """List and split the files, once; only ``predict`` of other images can do without."""
        require("torchvision.transforms.v2", extra="vision")  # told here, before a model runs
        if stage != "predict" or self.predict_path is None:
            self._listed()
        else:
            self.predict_files  # noqa: B018 - listed and kept

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Numbers that a model should give for an image: one for each class."""
        return self.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class folder, in the order of its number (alphabetical)."""
        return self._class_names or class_names_in(_folder(self.root))

    @property
    def test_rows(self) -> Tensor:
        """Place of every test image in the sorted list of the files it was drawn from.

        That list holds the readable images under ``root``, ``root/train`` or ``root/test``, class
        by class; :attr:`test_files` gives the paths themselves.
        """
        return self._listed().test_rows

    @property
    def test_files(self) -> list[str]:
        """Path of every test image, in test order."""
        return [path for path, _ in self._listed().test]

    @property
    def predict_files(self) -> list[str]:
        """Path of every image that ``predict`` answers, in the order of the predictions."""
        if self.predict_path is None:
            return self.test_files
        if self._predicted is None:
            place = _folder(self.predict_path)
            self._predicted = unlabelled_images(place, unreadable=self.unreadable)
        return self._predicted

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return the images of one split; ``None`` if it has none."""
        samples: list[Sample] = getattr(self._listed(), name)
        if not samples:
            return None
        files, labels = zip(*samples, strict=True)
        images = self.images(files, augment=self.augment and name == "train")
        return LabelledImages(images, labels)

    def predict_part(self) -> Dataset[Any] | None:
        """Return the images of ``predict_path``, without classes; without one, the test split."""
        if self.predict_path is None:
            return self.part("test")
        return self.images(self.predict_files)

    def unlabelled_part(self) -> Dataset[Any] | None:
        """Return the training images that ``labels_per_class`` leaves out; ``None`` for none."""
        files = [file for file, _ in self._listed().unlabelled]
        return self.images(files, augment=self.augment) if files else None

    def state_dict(self) -> dict[str, Any]:
        """Return the class names and how images are prepared, for the checkpoint."""
        if self._class_names is None and self._files is None:
            return {}
        return {"class_names": list(self.class_names), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the classes from a checkpoint, so that numbers mean what they meant in its training.

        So does how images are prepared, but for what is set here.

        Raises:
            DataError: the class folders are not those of the checkpoint.
        """
        if not state_dict:
            return
        super().load_state_dict(state_dict)
        self._class_names = tuple(state_dict["class_names"])
        if self._files is not None:
            self._check(self._files)

    def _listed(self) -> ImageFiles:
        if self._files is None:
            files = list_images(
                _folder(self.root),
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.seed,
                labels_per_class=self.labels_per_class,
                unreadable=self.unreadable,
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


def _folder(path: str) -> Path:
    return Path(path).expanduser()
