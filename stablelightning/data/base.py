"""What the data modules have in common: checked settings, three splits, and their loaders."""

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stablelightning.checks import check_whole
from stablelightning.errors import DataError, RecipeError

Part = Literal["train", "val", "test"]


class SplitDataModule(L.LightningDataModule):
    """A data module whose rows are split into training, validation and test.

    A subclass says what the splits hold (:meth:`part`) and, if it can, which unlabelled inputs
    ``predict`` answers (:meth:`predict_part`). Batches are ``(inputs, target)``.

    Args:
        batch_size: rows of a batch, on each process; >= 1.
        val_fraction: share of the rows that validate, in [0, 1); 0 for no validation.
        test_fraction: share of the rows that test, in [0, 1); 0 for no test.
        seed: seed of the split, >= 0.
        num_workers: processes that load data; 0 loads in the main process.

    Raises:
        RecipeError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        val_fraction: float,
        test_fraction: float,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        at_least("batch_size", batch_size, 1)
        at_least("seed", seed, 0)
        at_least("num_workers", num_workers, 0)
        for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= value < 1:
                raise RecipeError(
                    f"{name} must be in [0, 1), got {value}; 0 leaves that split empty."
                )
        if val_fraction + test_fraction >= 1:
            raise RecipeError(
                "val_fraction + test_fraction must be < 1, got "
                f"{val_fraction} + {test_fraction}; what is left over is for training."
            )
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.num_workers = num_workers
        # Kept in hparams and in checkpoints, but out of the loggers: Lightning refuses to log when
        # model and data module give one name two values, and `task` or `seed` easily does.
        self.save_hyperparameters(logger=False)

    @property
    def test_rows(self) -> Tensor:
        """Row of every test example in the original data, in test order; LongTensor ``(N,)``."""
        raise NotImplementedError

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return what the split ``name`` holds, or ``None`` if there is no such split."""
        raise NotImplementedError

    def predict_part(self) -> Dataset[Any] | None:
        """Return what ``predict`` answers: the test split, unless a subclass knows better."""
        return self.part("test")

    def unlabelled_part(self) -> Dataset[Any] | None:
        """Return the training inputs whose targets are not used, bare; ``None`` if there are none.

        A subclass with ``labels_per_class`` has some: what pretraining without labels may learn
        from beside the labelled ones.
        """
        return None

    def unlabelled_dataloader(self) -> DataLoader[Any] | None:
        """Return :meth:`unlabelled_part`, shuffled anew each epoch; ``None`` if there are none."""
        part = self.unlabelled_part()
        return None if part is None else self.loader(part, shuffle=True)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training rows, shuffled anew each epoch."""
        return self.loader(self._existing("train"), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return the validation rows, in order; an empty list if there are none."""
        part = self.part("val")
        return [] if part is None else self.loader(part)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test rows, in the order of :attr:`test_rows`."""
        return self.loader(self._existing("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return what ``predict`` answers, in order."""
        part = self.predict_part()
        return self.loader(self._existing("test") if part is None else part)

    def loader(self, dataset: Dataset[Any], *, shuffle: bool = False) -> DataLoader[Any]:
        """Wrap ``dataset`` in a DataLoader with this module's batch size and workers."""
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _existing(self, name: Part) -> Dataset[Any]:
        part = self.part(name)
        if part is None:
            raise DataError(
                f"there must be a {name} split for this, got {name}_fraction=0 and no {name} data "
                f"beside it; set {name}_fraction above 0."
            )
        return part


class Inputs(Dataset[Any]):
    """The inputs of a dataset of pairs, bare: what a dataset gives without its targets.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> Inputs(TensorDataset(torch.zeros(3, 2), torch.ones(3)))[0]
        tensor([0., 0.])
    """

    def __init__(self, pairs: Dataset[Any]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Any:
        return self.pairs[row][0]


def check_labels_per_class(labels_per_class: int | None) -> None:
    """Check the setting ``labels_per_class``: ``None`` or a whole number of at least 1.

    Raises:
        RecipeError: it is neither.

    Example:
        >>> check_labels_per_class(None)
    """
    if labels_per_class is not None:
        check_whole(
            "labels_per_class", labels_per_class, least=1, hint="null uses the labels of all rows"
        )


def at_least(name: str, value: int, minimum: int) -> None:
    """Check that the setting ``name`` is a whole number of at least ``minimum``.

    Raises:
        RecipeError: it is not.

    Example:
        >>> at_least("batch_size", 32, 1)
    """
    check_whole(name, value, least=minimum, hint="correct it in the recipe")
