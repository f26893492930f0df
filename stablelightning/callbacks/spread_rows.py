"""Rows of the training set, read beside its loader while that is in use."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset

from stablelightning.callbacks.rows import collated, copied


def spread_batches(loaders: Any, rows: int, *, part: int = 0, parts: int = 1) -> Iterator[Any]:
    """Batches of the same rows at every call, spread evenly over a dataset.

    Rows are taken from the dataset and collated as the loader does; its sampler is not asked and no
    worker is started. What is no ordinary loader (an iterable dataset, a loader of another class)
    is read from a copy, from its place.

    Args:
        loaders: a loader, or a structure of loaders that give the parts of one batch.
        rows: at most so many, of all parts together, >= 1.
        part: number of this process, whose rows are others than those of another.
        parts: number of processes.

    Raises:
        DataError: a loader can be read only once.

    Example:
        >>> loader = DataLoader(torch.arange(100), batch_size=2, shuffle=True)
        >>> [batch.tolist() for batch in spread_batches(loader, 4)]
        [[0, 33], [66, 99]]
    """
    leaves, spec = tree_flatten(loaders)
    for batches in zip(*(_batches(leaf, rows, part, parts) for leaf in leaves), strict=False):
        yield tree_unflatten(list(batches), spec)


def _batches(loader: Any, rows: int, part: int, parts: int) -> Iterator[Any]:
    if not _is_ordinary(loader):
        yield from _from_a_copy(loader, -(-rows // parts))
        return
    count = len(loader.dataset)
    places = torch.linspace(0, count - 1, min(rows, count)).round().long().tolist()[part::parts]
    size = loader.batch_size or 1
    for start in range(0, len(places), size):
        yield collated(loader, places[start : start + size])


def _is_ordinary(loader: Any) -> bool:
    return (
        type(loader).__iter__ is DataLoader.__iter__
        and loader.batch_size is not None
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__len__")
    )


def _from_a_copy(loader: Any, rows: int) -> Iterator[Any]:
    other = copied(loader, remedy="it; give a DataLoader, or what can be copied")
    seen = 0
    for batch in other:
        yield batch
        seen += next((len(t) for t in tree_flatten(batch)[0] if hasattr(t, "__len__")), 1)
        if seen >= rows:
            return
