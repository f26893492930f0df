"""The real handwritten digits that scikit-learn ships: no download."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stablelightning.data.base import Inputs, Part, SplitDataModule, check_labels_per_class
from stablelightning.data.splits import Split, few_labels, split_rows
from stablelightning.data.standardize import Standardization
from stablelightning.errors import RecipeError
from stablelightning.optional import require

DIGITS = 10
SIDE = 8
# The target of an input that belongs to none of the classes: what cross_entropy ignores by default.
NO_CLASS = -100


class DigitsData(SplitDataModule):
    """1,797 handwritten digits, 8 x 8 pixels, with two kinds of input that the model never saw.

    The digits in ``held_out`` are in none of the splits; the other classes are numbered anew from
    0 in the digits' order, and ``class_names`` says which number is which digit. Beside the splits,
    :meth:`ood_dataloaders` gives two out-of-distribution sets.

    Pixels are standardised by one mean and one standard deviation over all pixels of the training
    images. (Statistics of each pixel would do harm: the border is nearly constant, and dividing by
    its spread would make any ink there hundreds of units large.)

    Batches are ``(inputs, target)``: inputs float32 ``(B, 64)``, or ``(B, 1, 8, 8)`` with
    ``image=True``; target int64 ``(B,)`` in ``[0, num_classes)``.

    Args:
        held_out: digits kept out of training, validation and test; at most eight of them, and
            ``()`` for all ten classes.
        image: keep the two axes of the image, for convolutions.
        labels_per_class: train on so many images of each class, drawn by the seed; ``None`` for
            all. The other training images are the unlabelled ones (:meth:`unlabelled_part`). Pixels
            are scaled by all training images, which takes no label.
        batch_size: images of a batch, on each process.
        val_fraction: share of the images that validate, in [0, 1).
        test_fraction: share of the images that test, in [0, 1).
        seed: seed of the split, in which every class keeps its proportion.
        num_workers: processes that load data; 0 is fastest for data in memory.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``setup``: a class has fewer training images than ``labels_per_class``.
        MissingPackageError: from ``setup``: scikit-learn is not installed.

    Source:
        Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository (its test
        part, as scikit-learn ships it).

    Example:
        >>> data = DigitsData(batch_size=32)
        >>> data.setup()
        >>> inputs, target = next(iter(data.train_dataloader()))
        >>> inputs.shape, data.num_classes, data.class_names[-1], sorted(data.ood_dataloaders())
        (torch.Size([32, 64]), 8, '7', ['held_out_digits', 'rotated_digits'])
    """

    def __init__(
        self,
        *,
        held_out: tuple[int, ...] = (8, 9),
        image: bool = False,
        labels_per_class: int | None = None,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        held_out = _checked(held_out)
        check_labels_per_class(labels_per_class)
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        self.held_out = held_out
        self.image = image
        self.labels_per_class = labels_per_class
        self._kept = [digit for digit in range(DIGITS) if digit not in held_out]
        self._images: Tensor | None = None
        self._digits = torch.empty(0, dtype=torch.long)
        self._split: Split | None = None
        self._unlabelled = torch.empty(0, dtype=torch.long)
        self._scale: Standardization | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load and split the digits, once; every stage needs the training split's statistics."""
        if self._split is not None:
            return
        bunch = require("sklearn.datasets", extra="recipes").load_digits()
        images = torch.tensor(bunch.images, dtype=torch.float32)
        digits = torch.tensor(bunch.target, dtype=torch.long)
        rows = torch.isin(digits, torch.tensor(self._kept)).nonzero()[:, 0]
        split = split_rows(
            digits[rows],
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )
        self._images, self._digits = images, digits
        whole = Split(*(rows[part] for part in split))
        if self._scale is None:
            self._scale = Standardization.fit(images[whole.train].flatten())
        used, self._unlabelled = few_labels(
            torch.searchsorted(torch.tensor(self._kept), digits),
            whole.train,
            per_class=self.labels_per_class,
            seed=self.seed,
            class_names=self.class_names,
        )
        self._split = whole._replace(train=used)

    @property
    def num_classes(self) -> int:
        """Number of classes: ten, less those held out."""
        return len(self._kept)

    @property
    def num_outputs(self) -> int:
        """Numbers that a model should give for an image: one for each class."""
        return self.num_classes

    @property
    def num_features(self) -> int:
        """Number of pixels, 64."""
        return SIDE * SIDE

    @property
    def in_channels(self) -> int:
        """Number of colour channels of an image: 1."""
        return 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """The digit behind every class number, as text."""
        return tuple(str(digit) for digit in self._kept)

    @property
    def test_rows(self) -> Tensor:
        """Row in ``sklearn.datasets.load_digits()`` of every test image, in test order."""
        return self._ready()[1].test

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return the images of one split and their classes; ``None`` if it has none."""
        images, split = self._ready()
        rows: Tensor = getattr(split, name)
        if not len(rows):
            return None
        return TensorDataset(self._inputs(images[rows]), self._classes(rows))

    def unlabelled_part(self) -> Dataset[Any] | None:
        """Return the training images that ``labels_per_class`` leaves out; ``None`` for none."""
        images, _ = self._ready()
        rows = self._unlabelled
        if not len(rows):
            return None
        return Inputs(TensorDataset(self._inputs(images[rows]), self._classes(rows)))

    def ood_dataloaders(self) -> dict[str, DataLoader[Any]]:
        """Return the out-of-distribution sets, under the names that results are reported by.

        - ``held_out_digits``: every image of the digits in ``held_out``. Their target is
          :data:`NO_CLASS` (-100, which ``cross_entropy`` ignores): no class of the model is right.
          Absent if nothing is held out.
        - ``rotated_digits``: the test images turned by 90 degrees counter-clockwise, with their own
          classes. A quarter turn moves pixels and interpolates nothing, so that only the shape
          gives it away, no blur. A turned 0 is still much like a 0: some of these images are
          ordinary, and no score can separate them all. Absent if there is no test split.
        """
        images, split = self._ready()
        sets: dict[str, Dataset[Any]] = {}
        if self.held_out:
            unseen = torch.isin(self._digits, torch.tensor(self.held_out)).nonzero()[:, 0]
            none = torch.full((len(unseen),), NO_CLASS)
            sets["held_out_digits"] = TensorDataset(self._inputs(images[unseen]), none)
        if len(split.test):
            turned = torch.rot90(images[split.test], dims=(1, 2))
            sets["rotated_digits"] = TensorDataset(self._inputs(turned), self._classes(split.test))
        return {name: self.loader(dataset) for name, dataset in sets.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the training images' statistics, for the checkpoint."""
        return {} if self._scale is None else {"scale": list(self._scale)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's statistics, so that images are scaled as in its training."""
        if state_dict:
            self._scale = Standardization(*state_dict["scale"])

    def _ready(self) -> tuple[Tensor, Split]:
        self.setup()
        assert self._images is not None
        assert self._split is not None
        return self._images, self._split

    def _inputs(self, images: Tensor) -> Tensor:
        assert self._scale is not None
        scaled = self._scale.apply(images)
        return scaled[:, None] if self.image else scaled.flatten(1)

    def _classes(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self._kept), self._digits[rows])


def _checked(held_out: tuple[int, ...]) -> tuple[int, ...]:
    digits = tuple(held_out)
    if len(set(digits)) != len(digits) or not set(digits) <= set(range(DIGITS)):
        raise RecipeError(f"held_out must be distinct digits from 0 to 9, got {list(digits)}.")
    if len(digits) > DIGITS - 2:
        raise RecipeError(
            f"held_out must leave at least two digits to tell apart, got {list(digits)}; "
            "hold out fewer."
        )
    return digits
