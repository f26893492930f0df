"""Rows that a sampler gives twice, so that every process has as many, counted once."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from stablelightning.callbacks.records import Positions


def rows_in(batch: Any) -> int:
    """Rows of the batch's first tensor: the weight of its mean loss in that of the epoch.

    Example:
        >>> import torch
        >>> rows_in({"id": "a", "x": torch.zeros(5, 2)})
        5
    """
    tensors = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0)
    return next((len(tensor) for tensor in tensors), 1)


def without_repeats(
    trainer: L.Trainer | None, batch: Any, batch_idx: int, dataloader_idx: int
) -> tuple[Any, int]:
    """An evaluation batch without the rows that another process has as well.

    Where a dataset does not divide by the number of processes, Lightning's sampler gives rows from
    its beginning once more to the last processes, at the very end. They are the last rows of the
    last batch, and left out here; so that means over all processes are those of one.

    Args:
        trainer: while it validates or tests; ``None`` where there is none.
        batch: of a dataloader: tensors with rows along the first axis, in any structure. Objects
            that hold tensors (graphs) are left as they are, repeated rows included.
        batch_idx: its number.
        dataloader_idx: of its dataloader.

    Returns:
        The batch, and how many rows count. If that is 0, all were repeated and the batch is whole:
        there is nothing that a model could be run on otherwise.

    Example:
        >>> import torch
        >>> without_repeats(None, torch.zeros(4, 2), 0, 0)[1]
        4
    """
    rows = rows_in(batch)
    if trainer is None or trainer.world_size == 1:
        return batch, rows
    loader = _loader(trainer, dataloader_idx)
    size = getattr(loader, "batch_size", None)
    if loader is None or not isinstance(size, int) or batch_idx + 1 < len(loader):
        return batch, rows
    positions = Positions(loader, rank=trainer.global_rank, world=trainer.world_size)
    positions.next(batch_idx * size)
    fresh = positions.next(rows)[1]
    count = int(fresh.sum())
    if count in (0, rows):
        return batch, count
    taken = tree_map(lambda part: _taken(part, fresh), batch, is_leaf=_is_words)
    return (taken, count) if rows_in(taken) == count else (batch, rows)


def _loader(trainer: L.Trainer, dataloader_idx: int) -> DataLoader[Any] | None:
    """The dataloader of the batch; ``None`` where a batch comes from several, or from no such."""
    if trainer.state.fn not in ("fit", "validate", "test"):
        return None
    loop = trainer._evaluation_loop
    if loop._combined_loader is None or not loop._is_sequential:
        return None
    loaders = loop._combined_loader.flattened
    loader = loaders[dataloader_idx] if dataloader_idx < len(loaders) else None
    return loader if isinstance(loader, DataLoader) else None


def _is_words(part: Any) -> bool:
    """A list with one name or number for each row, which is not to be taken apart."""
    return isinstance(part, list) and all(isinstance(entry, str | int | float) for entry in part)


def _taken(part: Any, fresh: Tensor) -> Any:
    if isinstance(part, Tensor) and part.ndim > 0 and len(part) == len(fresh):
        return part[fresh.to(part.device)]
    if _is_words(part) and len(part) == len(fresh):
        return [entry for entry, new in zip(part, fresh.tolist(), strict=True) if new]
    return part
