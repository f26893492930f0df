"""The dataloaders of one ``Trainer.test``: telling them apart, counting rows, gathering records."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path, tree_structure

from stablelightning.callbacks.records import Positions, Record
from stablelightning.errors import DataError


class TestLoaders:
    """What is known of each test dataloader while the test runs.

    Args:
        trainer: at the start of a test, its dataloaders set up.
    """

    __test__ = False  # no test class, whatever pytest takes the name for

    def __init__(self, trainer: L.Trainer) -> None:
        structure = trainer.test_dataloaders
        leaves, _ = tree_flatten_with_path(structure)
        self._trainer = trainer
        self._spec = tree_structure(structure)
        self._paths = [".".join(_key(k) for k in path) for path, _ in leaves]
        # A CombinedLoader of another mode gives one batch of every dataloader at a time.
        self._combined = not trainer.test_loop._is_sequential
        self._records: dict[int, Record] = {}
        self._open = list(range(len(leaves)))
        self._positions = [
            Positions(
                loader,
                rank=trainer.global_rank,
                world=trainer.world_size,
                cycles=self._combined,
            )
            for _, loader in leaves
        ]

    def parts(self, batch: Any, dataloader_idx: int) -> Iterator[tuple[int, Any]]:
        """The batches in a batch, each with the number of its dataloader."""
        if not self._combined:
            yield max(dataloader_idx, 0), batch
            return
        for number, part in enumerate(self._spec.flatten_up_to(batch)):
            if part is not None:  # this dataloader is exhausted, and others are not
                yield number, part

    def named(self, loader: int) -> int | None:
        """The ``dataloader_idx`` that a step gets, None where it gets none."""
        return loader if len(self._positions) > 1 and not self._combined else None

    def suffix(self, loader: int) -> str:
        """What tells the logged keys of this dataloader from those of others."""
        if self._combined:
            return f"/{self._paths[loader]}"
        return "" if self.named(loader) is None else f"/dataloader_idx_{loader}"

    def record(self, loader: int, task: str) -> Record:
        """The record to which the batches of a dataloader are added."""
        return self._records.setdefault(loader, Record(task))

    def positions(self, loader: int, rows: int) -> tuple[Tensor, Tensor]:
        """Index of the next rows of a dataloader, and which of them count."""
        return self._positions[loader].next(rows)

    def open(self) -> list[int]:
        """Numbers of the dataloaders that were not closed yet."""
        return list(self._open)

    def close(self, loader: int, *, usable: bool) -> Record | None:
        """Merge what all processes saw of a dataloader. Every process must call this, in one order.

        Args:
            loader: its number.
            usable: False where this process stepped aside; then nobody gets a record.

        Returns:
            The record: sums on every process, rows on process 0. None if there is nothing.

        Raises:
            DataError: the processes' records do not fit together.
        """
        self._open.remove(loader)
        mine = self._records.pop(loader, None)
        gathered = _gather((usable, mine), self._trainer.world_size)
        merged: Record | DataError | None = None
        if gathered is not None:  # process 0
            records = [record for _, record in gathered if record is not None]
            if records and all(fine for fine, _ in gathered):
                try:
                    merged = Record.merged(records)
                except DataError as error:
                    merged = error
        whole = merged
        if isinstance(whole, Record):
            merged = replace(whole, rows=[])
        merged = self._trainer.strategy.broadcast(merged)
        if isinstance(merged, DataError):
            raise merged
        return whole if isinstance(whole, Record) else merged


def _gather(item: Any, world: int) -> list[Any] | None:
    """Everyone's item on process 0, None elsewhere."""
    if world == 1:
        return [item]
    items = [None] * world if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(item, items)
    return items


def _key(entry: Any) -> str:
    """One step of a pytree path: the key of a dict, the index of a list."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)
