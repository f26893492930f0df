"""Tables larger than memory in the order of their index: sorted runs on disk, then one merge."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from stablelightning.errors import DataError, OutputError
from stablelightning.optional import require
from stablelightning.words import reason_of

INDEX = "index"

#: Rows wait in memory until there are so many bytes of them.
_BUFFER_BYTES = 16 * 2**20
#: What is read of one run at a time while merging.
_BLOCK_BYTES = 2**20
#: Runs that are open at once, well below what a process may open.
_MOST_OPEN = 200


class SortedRuns:
    """Rows on their way to disk, as files in each of which the index only grows.

    Rows that come in order make one run, however many there are; rows that do not are sorted
    within the memory that they wait in, and make as many runs as that memory was filled.

    Args:
        folder: where the files go; it exists.
        prefix: how their names begin, different for each process.

    Example:
        >>> import tempfile, pyarrow
        >>> runs = SortedRuns(Path(tempfile.mkdtemp()), "first")
        >>> runs.add(pyarrow.table({"index": [2, 0], "mean": [0.2, 0.0]}))
        >>> [table.to_pydict() for table in merged(runs.close())]
        [{'index': [0, 2], 'mean': [0.0, 0.2]}]
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.rows = 0
        self._folder, self._prefix = folder, prefix
        self._waiting: list[Any] = []
        self._bytes = 0
        self._paths: list[Path] = []
        self._run: _Run | None = None

    def add(self, table: Any) -> None:
        """Add rows.

        Args:
            table: a ``pyarrow.Table`` with a column ``index`` of whole numbers.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        self.rows += len(table)
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes >= _BUFFER_BYTES:
            self._write()

    def close(self) -> list[Path]:
        """Write what waits, and give the files.

        Raises:
            OutputError: the disk is full, or the folder is gone.
        """
        self._write()
        self._end_run()
        return self._paths

    def discard(self) -> None:
        """Delete the files; may be called at any time, and twice."""
        self._waiting = []
        with suppress(Exception):  # a run that cannot be ended can still be deleted
            self._end_run()
        self._run = None
        for path in self._paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _write(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for table in _alike(waiting):
            table = _in_order(table.combine_chunks())  # else every batch would be a block
            if not len(table):
                continue
            if self._run is not None and not self._run.goes_on_with(table):
                self._end_run()
            try:
                if self._run is None:
                    path = self._folder / f"{self._prefix}-{len(self._paths)}.arrow"
                    self._paths.append(path)
                    self._run = _Run(path, table.schema)
                self._run.write(table)
            except OSError as error:
                raise OutputError(
                    f"predictions must be written to {self._folder}, and that failed "
                    f"({error.strerror or reason_of(error)}); choose another folder or free this "
                    "one."
                ) from error

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()


class _Run:
    """One file being written."""

    def __init__(self, path: Path, schema: Any) -> None:
        ipc = require("pyarrow.ipc", extra="recipes")
        self._schema = schema
        self._writer = ipc.new_file(str(path), schema)
        self._last = -1

    def goes_on_with(self, table: Any) -> bool:
        follows = int(table[INDEX][0].as_py()) > self._last
        return follows and bool(self._schema.equals(table.schema))

    def write(self, table: Any) -> None:
        self._writer.write_table(table, max_chunksize=_rows_of_a_block(table))
        self._last = table[INDEX][-1].as_py()

    def close(self) -> None:
        self._writer.close()


def merged(paths: Sequence[Path]) -> Iterator[Any]:
    """The rows of sorted runs as tables that follow each other in order, each index once.

    Where several runs hold a row of the same index, that of the first one counts. What is in memory
    at a time is about one block of each run.

    Args:
        paths: files of :meth:`SortedRuns.close`, of one process or several.

    Raises:
        OutputError: a file cannot be read.
        DataError: a column is of a different kind in different runs.
    """
    paths = list(paths)
    while len(paths) > _MOST_OPEN:
        together, paths = paths[:_MOST_OPEN], paths[_MOST_OPEN:]
        runs = SortedRuns(together[0].parent, f"{together[0].stem}-merged")
        for table in _merged(together):
            runs.add(table)
        for path in together:
            path.unlink()
        paths = [*runs.close(), *paths]
    yield from _merged(paths)


def schema_of(paths: Sequence[Path]) -> Any:
    """The columns of all runs together, as an Arrow schema; ``None`` if there is no run.

    Raises:
        OutputError: a file cannot be read.
        DataError: a column is of a different kind in different runs.
    """
    pyarrow = require("pyarrow", extra="recipes")
    schemas = []
    for path in paths:
        with _opened(path) as reader:
            schemas.append(reader.schema)
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive") if schemas else None
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            "predictions must have the same kind of columns in every batch, and they differ "
            f"({reason_of(error)}); return the same structure from predict_step each time."
        ) from error


def fitted(table: Any, schema: Any) -> Any:
    """The table with the columns of ``schema``; those that it has not are null.

    Example:
        >>> import pyarrow
        >>> schema = pyarrow.schema({"index": pyarrow.int64(), "row": pyarrow.int64()})
        >>> fitted(pyarrow.table({"index": [1]}), schema).to_pydict()
        {'index': [1], 'row': [None]}
    """
    pyarrow = require("pyarrow", extra="recipes")
    whole = pyarrow.concat_tables([schema.empty_table(), table], promote_options="permissive")
    return whole.select(schema.names).cast(schema)


def _merged(paths: Sequence[Path]) -> Iterator[Any]:
    pyarrow = require("pyarrow", extra="recipes")
    schema = schema_of(paths)
    with ExitStack() as stack:
        heads = [_Head(stack.enter_context(_opened(path)), schema) for path in paths]
        while heads := [head for head in heads if head.has_rows]:
            # Beyond the smallest end of a block, the next block of its run may have rows between.
            end = min(head.last for head in heads)
            yield _in_order(pyarrow.concat_tables([head.up_to(end) for head in heads]))


class _Head:
    """The block of a run at which a merge has arrived, and from where in it.

    Args:
        reader: of the run.
        schema: columns that the rows are given.
    """

    def __init__(self, reader: Any, schema: Any) -> None:
        self._reader, self._schema = reader, schema
        self._number = self._begin = 0
        self._table: Any = None
        self._index: Any = None
        self._load()

    @property
    def has_rows(self) -> bool:
        return self._table is not None

    @property
    def last(self) -> int:
        """The largest index of the block."""
        return int(self._index[-1])

    def up_to(self, end: int) -> Any:
        """The next rows, as far as those with an index of at most ``end``."""
        table, begin = self._table, self._begin
        stop = int(self._index.searchsorted(end, side="right"))
        self._begin = stop
        if stop == len(self._index):
            self._load()
        return table.slice(begin, stop - begin)

    def _load(self) -> None:
        self._begin, self._table = 0, None
        if self._number < self._reader.num_record_batches:
            pyarrow = require("pyarrow", extra="recipes")
            block = pyarrow.Table.from_batches([self._reader.get_batch(self._number)])
            self._table = fitted(block, self._schema)
            self._index = self._table[INDEX].to_numpy()
            self._number += 1


class _opened:
    """A run's reader over the mapped file: what is not read costs no memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        pyarrow = require("pyarrow", extra="recipes")
        ipc = require("pyarrow.ipc", extra="recipes")
        try:
            self._file = pyarrow.memory_map(os.fspath(self._path))
            return ipc.open_file(self._file)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise OutputError(
                f"{self._path.name} must lie in {self._path.parent} to be merged, and cannot be "
                f"read there ({reason_of(error)}); with several machines, predictions need a "
                "folder that all of them share."
            ) from error

    def __exit__(self, *_: Any) -> None:
        self._file.close()


def _in_order(table: Any) -> Any:
    """Sorted by index, each index once: the first row that has it."""
    index = table[INDEX].to_numpy()
    if (index[1:] > index[:-1]).all():
        return table
    order = index.argsort(kind="stable")
    ordered = index[order]
    first = ordered == ordered
    first[1:] = ordered[1:] != ordered[:-1]
    return table.take(order[first])


def _alike(tables: list[Any]) -> Iterator[Any]:
    """Neighbours of the same columns as one table."""
    pyarrow = require("pyarrow", extra="recipes")
    group: list[Any] = []
    for table in tables:
        if group and not group[0].schema.equals(table.schema):
            yield pyarrow.concat_tables(group)
            group = []
        group.append(table)
    if group:
        yield pyarrow.concat_tables(group)


def _rows_of_a_block(table: Any) -> int:
    return max(1, _BLOCK_BYTES * len(table) // max(1, int(table.nbytes)))
