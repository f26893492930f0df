"""Read a CSV or Parquet file into numbers, or say in one line what is wrong with it."""

import csv
import warnings
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.optional import require
from stablelightning.words import some

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_COLUMNS_SHOWN = 8
_FAULTS_SHOWN = 3


class Classes(NamedTuple):
    """A class of every row: ``codes`` ``(N,)``, a LongTensor of places in ``names``."""

    codes: Tensor
    names: tuple[str, ...]


def read_table(path: str) -> Any:
    """Read a ``.csv``, ``.tsv``, ``.parquet`` or ``.pq`` file into a pandas DataFrame.

    The first line of a CSV names the columns; its separator (comma, semicolon or tab) is the one
    that this line holds most of.

    Raises:
        DataError: the file is missing, of another type, unreadable, or has no rows; or its
            columns' names are not unique.
        MissingPackageError: pandas or pyarrow is not installed.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"a data file must end in {', '.join(SUFFIXES)}, got {path!r}; convert it.")
    if not file.is_file():
        raise DataError(
            f"a data file must exist, got {path!r}, which does not (looked in {Path.cwd()}); "
            "correct the path."
        )
    frame = _read_csv(file) if suffix in (".csv", ".tsv") else _read_parquet(file)
    if not len(frame):
        raise DataError(f"a data file must have rows, got none in {path}.")
    _check_unique(frame.columns, file)
    return frame


def check_columns(frame: Any, names: Sequence[str], *, role: str, source: str) -> None:
    """Check that ``frame`` has the columns ``names``.

    Raises:
        DataError: names the first missing one, the nearest that is there, and what there is.
    """
    columns = [str(column) for column in frame.columns]
    for name in names:
        if name in columns:
            continue
        lowered = {column.lower(): column for column in columns}
        near = get_close_matches(name.lower(), lowered, n=1)
        hint = f"; did you mean {lowered[near[0]]!r}?" if near else "."
        shown = some(columns, _COLUMNS_SHOWN)
        raise DataError(
            f"{role} must be a column of {source}, got {name!r}{hint} Its columns: {shown}."
        )


def numeric_values(frame: Any, columns: Sequence[str], *, source: str, remedy: str) -> Tensor:
    """Return ``columns`` as float64 ``(N, F)``.

    Args:
        frame: a pandas DataFrame.
        columns: names of the columns, in the order wanted.
        source: what the frame was read from, for messages.
        remedy: what to do about a column of text, for messages.

    Raises:
        DataError: a column holds text or dates, or a value is missing, NaN or infinite.
    """
    series = [_numbers(frame[name], name, source=source, remedy=remedy) for name in columns]
    values = torch.stack(series, dim=1) if series else torch.empty(len(frame), 0)
    bad = ~torch.isfinite(values)
    faults = [
        f"{int(bad[:, place].sum())} in {name!r} (first in row {int(bad[:, place].int().argmax())})"
        for place, name in enumerate(columns)
        if bad[:, place].any()
    ]
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        and_more = f", and {more} more columns" if more > 0 else ""
        raise DataError(
            f"numbers must be present and finite, got missing, NaN or infinite values in {source}: "
            f"{', '.join(faults[:_FAULTS_SHOWN])}{and_more}; fill or drop those rows "
            "(counted from 0)."
        )
    return values


def class_values(frame: Any, column: str, *, source: str) -> Classes:
    """Return the classes in ``column``: text as it stands, or whole numbers in ascending order.

    Raises:
        DataError: a value is missing, a number is not whole, or there are fewer than two classes.
    """
    series = frame[column]
    missing = series.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"every row must have a class, got {int(missing.sum())} without one in {column!r} of "
            f"{source} (first in row {int(missing.argmax())}, counted from 0); drop those rows."
        )
    values = series.tolist()
    if all(isinstance(value, float) for value in values):
        values = [_whole(value, row, column, source) for row, value in enumerate(values)]
    if not all(isinstance(value, int) for value in values):
        values = [str(value) for value in values]
    distinct = sorted(set(values))
    if len(distinct) < 2:
        raise DataError(
            f"classification must have at least two classes, got only {str(distinct[0])!r} in "
            f"{column!r} of {source}; add rows of another class."
        )
    place = {value: code for code, value in enumerate(distinct)}
    codes = torch.tensor([place[value] for value in values])
    return Classes(codes=codes, names=tuple(str(value) for value in distinct))


def _read_csv(file: Path) -> Any:
    pandas = require("pandas", extra="recipes")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            separator = _check_header(lines.readline(), file)
        with warnings.catch_warnings():
            # Surplus fields would be cut off with no more than this warning.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                file,
                sep=separator,
                encoding="utf-8-sig",
                index_col=False,  # else surplus fields make the first column a row name
                skipinitialspace=True,
                low_memory=False,
            )
    except pandas.errors.EmptyDataError:
        raise DataError(f"a data file must have rows, got an empty file: {file}.") from None
    except pandas.errors.ParserWarning:
        raise DataError(
            f"every row must have as many fields as the header, got more in {file}; "
            "remove surplus separators at the ends of lines."
        ) from None
    except DataError:
        raise
    except (OSError, ValueError) as error:  # a ParserError and a UnicodeDecodeError are ValueErrors
        raise _unreadable(file, error) from error
    frame.columns = [str(column).strip() for column in frame.columns]
    return frame


def _check_header(header: str, file: Path) -> str:
    """Return the separator of a CSV's first line, whose names pandas would make unique silently."""
    separator = max(",;\t", key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    if "" in names:
        # pandas would call it "Unnamed: 0", and the number of a row would be an input.
        raise DataError(
            f"every column must have a name, got none for column {names.index('') + 1} of "
            f"{len(names)} in {file}; name it (and list it in ignore where it only counts the "
            "rows, as pandas' index does)."
        )
    _check_unique(names, file)
    return separator


def _check_unique(names: Sequence[str], file: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"column names must be unique, got {twice[0]!r} more than once in {file}; rename them."
        )


def _read_parquet(file: Path) -> Any:
    pandas = require("pandas", extra="recipes")
    require("pyarrow", extra="recipes")
    try:
        frame = pandas.read_parquet(file, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise _unreadable(file, error) from error
    frame.columns = [str(column) for column in frame.columns]
    return frame.reset_index(drop=True)


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"a data file must be readable, got {str(file)!r} ({reason}); check the file.")


def _numbers(series: Any, name: str, *, source: str, remedy: str) -> Tensor:
    types = require("pandas", extra="recipes").api.types
    if isinstance(series.dtype, types.CategoricalDtype):
        series = series.astype(series.cat.categories.dtype)
    if types.is_object_dtype(series.dtype) or types.is_string_dtype(series.dtype):
        series = _parsed(series, name, source=source, remedy=remedy)
    elif not types.is_numeric_dtype(series.dtype) or types.is_complex_dtype(series.dtype):
        raise DataError(
            f"column {name!r} of {source} must hold numbers, got {series.dtype}; {remedy}"
        )
    return torch.tensor(series.to_numpy(dtype="float64", na_value=float("nan")))


def _parsed(series: Any, name: str, *, source: str, remedy: str) -> Any:
    parsed = require("pandas", extra="recipes").to_numeric(series, errors="coerce")
    text = (parsed.isna() & series.notna()).to_numpy()
    if text.any():
        row = int(text.argmax())
        raise DataError(
            f"column {name!r} of {source} must hold numbers, got {series.iloc[row]!r} in row {row} "
            f"(counted from 0); {remedy}"
        )
    return parsed


def _whole(value: float, row: int, column: str, source: str) -> int:
    if not value.is_integer():
        raise DataError(
            f"classes must be text or whole numbers, got {value} in row {row} of {column!r} in "
            f"{source}; for a target that is a quantity, set task to regression."
        )
    return int(value)
