"""The class folders of ``--root``, read once into a tensor outside the project, and split by seeds.

Images are read in the order of their paths and shuffled within each class by a fixed seed; that
order decides what trains, validates and tests, for all sections and seeds alike: the first images
of a class are its test images, and those after them its validation images, and no labelled image is
drawn from either.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

#: Images of each class, in this order.
TEST, VALIDATION, POOL = 1000, 500, 3500

#: Means and standard deviations of the pixels of this data, in [0, 255] units.
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)

WHITE = 255

#: Images of a batch that is not trained on.
EVALUATED = 500

#: Pixels by which an image is moved at most.
_SHIFT = 4

_SHUFFLE = 0


@dataclass(frozen=True)
class Images:
    """All images: bytes ``(N, 3, 32, 32)``, and the rows of each class in their shuffled order."""

    pixels: Tensor
    rows: tuple[Tensor, ...]
    names: tuple[str, ...]


def folder_of(root: str) -> Path:
    """Where what is made from ``root`` is kept between runs."""
    name = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"transfer-benchmark-{name}"
    folder.mkdir(exist_ok=True)
    return folder


@cache
def images(root: str) -> Images:
    """Read the folders, or what was kept of them."""
    kept = folder_of(root) / "images.pt"
    if not kept.exists():
        torch.save(_read(Path(root)), kept)
    pixels, target, names = torch.load(kept, weights_only=True)
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(_SHUFFLE))
    rows = tuple(order[target[order] == number] for number in range(len(names)))
    return Images(pixels, rows, tuple(names))


def _read(root: Path) -> tuple[Tensor, Tensor, list[str]]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if len(folders) == 1:  # the archive has a folder around them
        return _read(folders[0])
    arrays, target = [], []
    for number, folder in enumerate(folders):
        files = sorted(folder.glob("*.jpg"))
        arrays += [np.asarray(Image.open(file).convert("RGB")) for file in files]
        target += [number] * len(files)
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(target), [folder.name for folder in folders]


class CifarData(L.LightningDataModule):
    """Some classes of the images, or a few labelled ones of each.

    Batches are ``(inputs, target)``: float32 ``(B, 3, 32, 32)``, standardised, and int64 ``(B,)``.
    Training images are mirrored and moved at random.

    Args:
        root: folder of class folders.
        classes: their numbers in the order of the folders' names; target 0 is the first of them.
        pool: training images of each class that there are.
        per_class: how many of them are used, drawn by ``seed``; ``None`` takes all.
        seed: of that draw.
        batch_size: images of a batch.
        augment: mirror and move.
        copies: how often each training image is in an epoch.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[int] = tuple(range(10)),
        *,
        pool: int = POOL,
        per_class: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        augment: bool = True,
        copies: int = 1,
    ) -> None:
        super().__init__()
        # Where views of images are drawn, these say what black is.
        self.mean, self.std = tuple(m / WHITE for m in MEAN), tuple(s / WHITE for s in STD)
        self.root, self.classes = root, tuple(classes)
        self.pool, self.per_class, self.seed = pool, per_class, seed
        self.batch_size, self.augment, self.copies = batch_size, augment, copies

    def rows(self, part: str) -> list[Tensor]:
        """Of every class."""
        found = []
        for number, name in enumerate(self.classes):
            own = images(self.root).rows[name]
            parts = {
                "test": own[:TEST],
                "val": own[TEST : TEST + VALIDATION],
                "train": own[TEST + VALIDATION :][: self.pool],
            }
            rows = parts[part]
            if part == "train" and self.per_class is not None:
                generator = torch.Generator().manual_seed(1000 * self.seed + number)
                rows = rows[torch.randperm(len(rows), generator=generator)[: self.per_class]]
            found.append(rows)
        return found

    def loader(self, part: str) -> DataLoader[Any]:
        """Batches of one part; those of training in a new order each epoch, without a short one."""
        rows = self.rows(part)
        target = [torch.full((len(own),), number) for number, own in enumerate(rows)]
        shape = (1, 3, 1, 1)
        inputs = images(self.root).pixels[torch.cat(rows)].float()
        inputs.sub_(torch.tensor(MEAN).view(shape)).div_(torch.tensor(STD).view(shape))
        dataset: Dataset[Any] = TensorDataset(inputs, torch.cat(target))
        if part != "train":
            return DataLoader(dataset, EVALUATED)
        if self.copies > 1:
            dataset = ConcatDataset([dataset] * self.copies)
        return DataLoader(dataset, self.batch_size, shuffle=True, drop_last=True)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Mirror and move the training images, each by itself."""
        if not self.augment or self.trainer is None or not self.trainer.training:
            return batch
        inputs, target = batch
        return moved(inputs), target


def moved(inputs: Tensor) -> Tensor:
    """Mirror half of the images, and move each by up to four pixels; the border is mirrored."""
    count, _, height, width = inputs.shape
    padded = F.pad(inputs, (_SHIFT,) * 4, mode="reflect")
    rows = torch.arange(height) + torch.randint(2 * _SHIFT + 1, (count, 1))
    columns = torch.arange(width).expand(count, -1)
    columns = torch.where(torch.rand(count, 1) < 0.5, width - 1 - columns, columns)
    columns = columns + torch.randint(2 * _SHIFT + 1, (count, 1))
    each = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
