"""Where the rows of a predict dataloader stand in its dataset."""

from collections.abc import Mapping, Sized
from typing import Any

import torch
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from torch import Tensor
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from stablelightning.errors import DataError
from stablelightning.report.columns import Column


class RowPlaces:
    """Positions of rows in the dataset of one predict dataloader.

    Lightning notes which rows it asks a ``DataLoader`` for; where it cannot, rows are numbered as
    they come.

    Args:
        loader: the dataloader that Lightning iterates.
        world: number of processes.

    Attributes:
        size: rows of the dataset, where the loader gives each of them once; else ``None``.

    Example:
        >>> places = RowPlaces([torch.zeros(2), torch.zeros(3)], world=1)
        >>> for batch in range(2):
        ...     print(places.of(batch, columns={"mean": torch.zeros(2 + batch)}))
        tensor([0, 1])
        tensor([2, 3, 4])
    """

    def __init__(self, loader: Any, *, world: int) -> None:
        sampler = getattr(loader, "batch_sampler", None)
        self._asked = sampler if isinstance(sampler, _IndexBatchSamplerWrapper) else None
        self._kind = type(getattr(loader, "dataset", loader)).__name__
        self._world = world
        self._seen = 0
        self.size = _size(loader) if self._asked is not None else None

    def of(
        self, batch_idx: int, *, columns: Mapping[str, Column], own: Column | None = None
    ) -> Tensor:
        """Position of each row of a batch, ``(N,)`` int64.

        Args:
            batch_idx: number of the batch on this process.
            columns: what was predicted of it, which says how many rows there are where nothing
                else does.
            own: what the prediction says of its places, which counts before all else.

        Raises:
            DataError: several processes, and nobody can say which row is which.
        """
        if own is not None:
            return torch.as_tensor(own, dtype=torch.int64).reshape(-1)
        asked = self._asked.seen_batch_indices[batch_idx] if self._asked is not None else None
        if asked is not None:
            try:
                return torch.tensor([int(place) for place in asked], dtype=torch.int64)
            except (TypeError, ValueError):  # a dataset with keys of its own
                pass
        if self._world > 1:
            raise DataError(
                f"with {self._world} processes predictions are put in order by the position of "
                f"each row in its dataset, and {self._kind} has none; predict with devices=1, use "
                "a dataset with __getitem__ and __len__ in a DataLoader, or return a dict with an "
                "'index' of each row from predict_step."
            )
        rows = len(next(iter(columns.values()), ()))
        self._seen += rows
        return torch.arange(self._seen - rows, self._seen)


def _size(loader: Any) -> int | None:
    """Rows of the dataset, where the order is a permutation of them (under whatever wrapping)."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        sampler = getattr(sampler.dataset, "_sampler", sampler)
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler and not sampler.replacement
    )
    dataset = loader.dataset
    return len(dataset) if plain and isinstance(dataset, Sized) else None
