"""Rows of a loader, read beside it: its order, its generators and its workers are left alone."""

import copy
from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from stablelightning.errors import DataError


def collated(loader: Any, places: Sequence[int]) -> Any:
    """These rows of the loader's dataset as one batch, put together as the loader does.

    Args:
        loader: an ordinary one over a dataset that can be indexed.
        places: of the rows.

    Example:
        >>> collated(DataLoader([1.0, 2.0, 3.0], batch_size=2), [2, 0])
        tensor([3., 1.], dtype=torch.float64)
    """
    if hasattr(loader.dataset, "__getitems__"):
        return loader.collate_fn(loader.dataset.__getitems__(places))
    return loader.collate_fn([loader.dataset[place] for place in places])


def copied(loader: Any, *, remedy: str) -> Any:
    """A copy of a loader, to be read from its place without workers.

    Args:
        loader: any loader.
        remedy: what to do where it cannot be copied, the end of a sentence.

    Raises:
        DataError: it can be read only once.

    Example:
        >>> list(copied(DataLoader([1, 2], num_workers=2), remedy="give another"))
        [tensor([1]), tensor([2])]
    """
    try:
        other = copy.deepcopy(loader)
    except Exception as error:  # generators, sockets, locks: each kind raises its own
        raise DataError(
            "the training data can be read only once (it cannot be copied), and training needs "
            f"{remedy}."
        ) from error
    if isinstance(other, DataLoader) and other.num_workers:
        # Past the loader's own guard, which is against changes while it is in use.
        vars(other).update(num_workers=0, prefetch_factor=None, persistent_workers=False)
    return other
