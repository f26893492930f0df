"""Images without classes, as a Lightning data module: what pretraining learns from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stablelightning.data.base import Part
from stablelightning.data.folders import unlabelled_images
from stablelightning.data.image_base import ImageDataModule
from stablelightning.data.readable import Unreadable
from stablelightning.data.splits import Split, split_rows
from stablelightning.errors import DataError
from stablelightning.optional import require


class UnlabelledImages(ImageDataModule):
    """Every image under one folder or more, at any depth, without a class.

    Batches are bare inputs: float32 ``(B, 3, image_size, image_size)``, normalised. Folders may
    also be those of :class:`~stablelightning.data.images.ImageFolderData`; their names then mean
    nothing. How images are read and prepared is as there.

    Args:
        root: the folder, or an image.
        more_roots: further folders; an image that lies under two of them counts once.
        image_size: height and width that the model sees, in pixels, >= 1; ``None`` for what the
            network's weights were trained with, or 224.
        batch_size: images of a batch, on each process.
        mean: mean of each channel, in [0, 1] units, that is subtracted; ``None`` likewise.
        std: standard deviation of each channel, > 0, that is divided by; ``None`` likewise.
        augment: crop and mirror training images at random.
        unreadable: ``"refuse"`` images that cannot be read, or ``"skip"`` and count them.
        val_fraction: share of the images that validate, in [0, 1).
        test_fraction: share of the images that test, in [0, 1).
        seed: seed of the split.
        num_workers: processes that read and decode images.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``setup``: a folder is missing or has no images, or one cannot be read.
        MissingPackageError: from ``setup``: torchvision or Pillow is missing or broken.

    Example:
        >>> data = UnlabelledImages("my_photos", more_roots=["my_scans"], image_size=96)
        >>> data.preprocessing.image_size, data.hparams.more_roots
        (96, ('my_scans',))
    """

    def __init__(
        self,
        root: str | Path,
        *,
        more_roots: tuple[str, ...] = (),
        image_size: int | None = None,
        batch_size: int = 64,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        augment: bool = True,
        unreadable: Unreadable = "refuse",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        # Checkpoints hold the settings and are read back without pickle: plain types only.
        root = str(root)
        more_roots = _paths(more_roots)
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
        self.more_roots = more_roots
        self._files: list[str] | None = None
        self._split: Split | None = None

    def setup(self, stage: str | None = None) -> None:
        """List and split the files, once."""
        require("torchvision.transforms.v2", extra="vision")  # told here, before a model runs
        self._listed()

    @property
    def test_rows(self) -> Tensor:
        """Place of every test image in the sorted list of all files."""
        return self._listed()[1].test

    @property
    def test_files(self) -> list[str]:
        """Path of every test image, in test order."""
        files, split = self._listed()
        return [files[row] for row in split.test.tolist()]

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return the images of one split; ``None`` if it has none."""
        files, split = self._listed()
        rows: Tensor = getattr(split, name)
        if not len(rows):
            return None
        wanted = [files[row] for row in rows.tolist()]
        return self.images(wanted, augment=self.augment and name == "train")

    def state_dict(self) -> dict[str, Any]:
        """Return how images are prepared, for the checkpoint."""
        return {} if self._files is None else super().state_dict()

    def _listed(self) -> tuple[list[str], Split]:
        if self._files is None or self._split is None:
            found: dict[str, None] = {}  # in order, each once
            for root, name in [(self.root, "root"), *((r, "more_roots") for r in self.more_roots)]:
                place = Path(root).expanduser()
                listed = unlabelled_images(place, setting=name, unreadable=self.unreadable)
                found |= dict.fromkeys(str(Path(file).resolve()) for file in listed)
            if len(found) < 2:
                raise DataError(
                    f"pretraining needs at least two images, got {len(found)} in {self.root}; "
                    "name more folders in more_roots."
                )
            self._split = split_rows(
                torch.zeros(len(found), dtype=torch.long),
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.seed,
            )
            self._files = list(found)
        return self._files, self._split


def _paths(roots: Iterable[str]) -> tuple[str, ...]:
    return (str(roots),) if isinstance(roots, str | Path) else tuple(str(root) for root in roots)
