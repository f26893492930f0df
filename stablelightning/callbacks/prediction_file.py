"""One table of predictions that several processes write together, and that appears whole."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lightning as L
import torch

from stablelightning.errors import DataError, OutputError, StableLightningError
from stablelightning.files import written_whole
from stablelightning.optional import require
from stablelightning.report.sorted_runs import SortedRuns, fitted, merged, schema_of
from stablelightning.words import reason_of

_Outcome = TypeVar("_Outcome")

#: Rows are gathered to so many bytes before they are written: what readers skip by.
_ROW_GROUP_BYTES = 32 * 2**20


class Part(NamedTuple):
    """What one process has of one dataloader.

    Args:
        paths: of its sorted runs.
        rows: how many it has predicted.
        size: how many there are in the dataset, where each is predicted once; else ``None``.
    """

    paths: list[Path]
    rows: int
    size: int | None


class PredictionFile:
    """A Parquet file in the making. Every process makes one, and finishes it.

    Each process streams its rows to sorted runs in a hidden folder beside the file. At the end
    process 0 merges these, in bounded memory, to a temporary file that takes the place of the old
    one in one step: a run that dies leaves what was there.

    Args:
        trainer: whose processes write.
        path: of the file; that of process 0 counts.

    Raises:
        OutputError: on every process: the folder cannot be written.
    """

    def __init__(self, trainer: L.Trainer, path: Path) -> None:
        self._trainer = trainer
        # The token keeps what a run that was killed has left from being taken for ours.
        self.path, token = trainer.strategy.broadcast((path, secrets.token_hex(4)))
        self._parts: Path = self.path.with_name(f".{self.path.stem}.parts")
        self._prefix = f"{token}-{trainer.global_rank}"
        self._runs: dict[int, SortedRuns] = {}
        self._sizes: dict[int, int | None] = {}
        self._first_acts(self._make_folder)

    def add(self, loader: int, table: Any, *, size: int | None = None) -> None:
        """Add rows.

        Args:
            loader: number of their dataloader.
            table: a ``pyarrow.Table`` with their ``index``.
            size: see :class:`Part`.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        if loader not in self._runs:
            self._runs[loader] = SortedRuns(self._parts, f"{self._prefix}-{loader}")
        self._sizes[loader] = size
        self._runs[loader].add(table)

    def finish(self) -> int:
        """Put the parts of all processes together; each must call this.

        Returns:
            How many rows are in the file; 0 where nothing was predicted, and no file written.

        Raises:
            OutputError: on every process: a part or the file cannot be written or read.
            DataError: on every process: columns differ, or rows were predicted by no process.
        """
        mine = {
            loader: Part(runs.close(), runs.rows, self._sizes[loader])
            for loader, runs in self._runs.items()
        }
        everyone = _gathered(mine, self._trainer.world_size)
        rows = self._first_acts(lambda: self._merge(everyone))
        self._runs = {}
        return rows

    def discard(self) -> None:
        """Delete what this process has written, if the file was not finished."""
        runs, self._runs = self._runs, {}
        for each in runs.values():
            each.discard()
        with suppress(OSError):  # others have files in it, or it is gone
            self._parts.rmdir()

    def _make_folder(self) -> None:
        try:
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir(parents=True)
        except OSError as error:
            raise OutputError(
                f"{self.path.name} must be written to {self.path.parent}, and that failed "
                f"({error.strerror or error}); choose another folder or free this one."
            ) from error

    def _merge(self, everyone: list[dict[int, Part]]) -> int:
        loaders = sorted({loader for parts in everyone for loader in parts})
        parts = [[parts[loader] for parts in everyone if loader in parts] for loader in loaders]
        try:
            schema = schema_of([path for of in parts for part in of for path in part.paths])
            if schema is None:
                return 0
            parquet = require("pyarrow.parquet", extra="recipes")
            with (
                written_whole(self.path) as temporary,
                parquet.ParquetWriter(temporary, schema) as writer,
            ):
                return sum(_write(of, writer, schema) for of in parts)
        finally:
            shutil.rmtree(self._parts, ignore_errors=True)

    def _first_acts(self, act: Callable[[], _Outcome]) -> _Outcome:
        """Let process 0 do it; its result or its error is everyone's, so that no other waits."""
        outcome: Any = None
        if self._trainer.is_global_zero:
            try:
                outcome = act()
            except StableLightningError as error:
                outcome = error
            except Exception as error:  # whatever Arrow raises
                outcome = OutputError(
                    f"{self.path.name} must be put together in {self.path.parent}, and that "
                    f"failed ({reason_of(error)}); the file that was there is left as it was."
                )
                outcome.__cause__ = error
        told = self._trainer.strategy.broadcast(outcome)
        if isinstance(told, Exception):
            raise outcome if isinstance(outcome, Exception) else told
        return told  # type: ignore[no-any-return]


def _write(parts: list[Part], writer: Any, schema: Any) -> int:
    """Write the rows of one dataloader.

    Raises:
        DataError: there are fewer than were to be predicted.
    """
    written = 0
    for table in _grouped(merged([path for part in parts for path in part.paths])):
        writer.write_table(fitted(table, schema), row_group_size=len(table))
        written += len(table)
    sizes = [part.size for part in parts]
    seen = sum(part.rows for part in parts)
    if None not in sizes and written < min(seen, max(size or 0 for size in sizes)):
        raise DataError(
            "every row must be predicted by one process, and "
            f"{max(size or 0 for size in sizes) - written} were predicted by none while others "
            "were by several: each process shuffles in its own way; give shuffle=False in "
            "predict_dataloader, or call L.seed_everything."
        )
    return written


def _grouped(tables: Iterator[Any]) -> Iterator[Any]:
    """The same rows in tables of about a row group."""
    pyarrow = require("pyarrow", extra="recipes")
    group: list[Any] = []
    for table in tables:
        group.append(table)
        if sum(each.nbytes for each in group) >= _ROW_GROUP_BYTES:
            yield pyarrow.concat_tables(group)
            group = []
    if group:
        yield pyarrow.concat_tables(group)


def _gathered(item: Any, world: int) -> list[Any]:
    """Everyone's item, by process."""
    if world == 1:
        return [item]
    items = [None] * world
    torch.distributed.all_gather_object(items, item)
    return items
