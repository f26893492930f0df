"""Which rows train, which validate, which test: by a seed, or by index files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stablelightning.errors import DataError

_ROUND_HALF_UP = 0.5


class Split(NamedTuple):
    """Three disjoint sets of 0-based rows, each a LongTensor; one that is not wanted is empty."""

    train: Tensor
    val: Tensor
    test: Tensor


def split_rows(labels: Tensor, *, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Split rows by a seed, so that every class is shared out in the same proportions.

    The result depends on the arguments alone, not on the global random state, so that all the
    processes of a distributed run agree on it.

    Args:
        labels: class of every row, ``(N,)``; all equal where there are no classes (regression).
        val_fraction: share of the rows that validate, in [0, 1).
        test_fraction: share of the rows that test, in [0, 1); the sum with ``val_fraction`` is < 1.
        seed: seed of the shuffle, >= 0.

    Returns:
        The split, rows in ascending order. Every class has at least one training row, and less than
        two rows more or fewer in a split than its exact share.

    Raises:
        DataError: there are too few rows for a split that was asked for.

    Source:
        Systematic sampling (Cochran 1977, Sampling Techniques, chapter 8): rows are shuffled,
        ordered by class, and taken at even distances.

    Example:
        >>> labels = torch.tensor([0, 1] * 5)
        >>> split = split_rows(labels, val_fraction=0.2, test_fraction=0.2, seed=0)
        >>> [len(rows) for rows in split]
        [6, 2, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    classes = torch.tensor(sorted(set(labels.tolist())))
    # In an order of their own, or a class of one row would meet the same fate under every seed.
    places = torch.randperm(len(classes), generator=generator)
    order = order[torch.argsort(places[torch.searchsorted(classes, labels[order])], stable=True)]
    tests = _evenly(len(order), test_fraction)
    rest = order[~tests]
    validates = _evenly(len(rest), val_fraction / (1 - test_fraction))
    split = _with_every_class_training(
        labels, Split(train=rest[~validates], val=rest[validates], test=order[tests])
    )
    wanted = {"train": True, "val": val_fraction > 0, "test": test_fraction > 0}
    for name, rows in split._asdict().items():
        if wanted[name] and not len(rows):
            raise DataError(
                f"every split must have at least one row, got {len(labels)} rows, of which none is "
                f"left for {name} (val_fraction={val_fraction}, test_fraction={test_fraction}); "
                "add data or change the fractions."
            )
    return split


def split_by_files(
    labels: Tensor, files: Mapping[str, str], *, val_fraction: float, seed: int
) -> Split:
    """Split rows as index files say: text files of 0-based row numbers, one a line.

    Args:
        labels: class of every row, ``(N,)``; all equal where there are no classes.
        files: path of the file for ``"train"``, ``"test"`` and, if there is one, ``"val"``.
            Without ``"val"``, validation rows are drawn from the training file's.
        val_fraction: share of the training file's rows that validate if there is no such file.
        seed: seed of that draw.

    Returns:
        The split; rows that came from a file keep the file's order. Rows in no file are unused.

    Raises:
        DataError: a file is missing or empty, holds something other than a row number, a row that
            the data does not have, or a row that it or another file has already named.
    """
    given = {name: _read_rows(path, row_count=len(labels)) for name, path in files.items()}
    owner: dict[int, str] = {}
    for name, rows in given.items():
        for row in rows:
            if row in owner:
                raise DataError(
                    f"index files must name every row at most once, got row {row} in "
                    f"{files[name]} and in {files[owner[row]]}; remove it from one of them."
                )
            owner[row] = name
    train, test = torch.tensor(given["train"]), torch.tensor(given["test"])
    if "val" in given:
        return Split(train=train, val=torch.tensor(given["val"]), test=test)
    inner = split_rows(labels[train], val_fraction=val_fraction, test_fraction=0.0, seed=seed)
    return Split(train=train[inner.train], val=train[inner.val], test=test)


def check_classes_train(labels: Tensor, train: Tensor, class_names: Sequence[str]) -> None:
    """Refuse a split by files in which a class has no training row: no model could learn it.

    Args:
        labels: class of every row, ``(N,)``.
        train: the training rows.
        class_names: name of every class.

    Raises:
        DataError: names the first such class and how many rows it has in all.
    """
    counts = torch.bincount(labels, minlength=len(class_names))
    in_train = torch.bincount(labels[train], minlength=len(class_names))
    for name, total, trained in zip(class_names, counts.tolist(), in_train.tolist(), strict=True):
        if not trained:
            raise DataError(
                f"every class must have a row in the training split, got none of the {total} of "
                f"class {name!r}; add rows of that class or remove it."
            )


def few_labels(
    labels: Tensor, train: Tensor, *, per_class: int | None, seed: int, class_names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Choose the training rows whose labels are used, equally many of every class.

    Under one seed, a larger choice holds the smaller one, so that a curve over the number of labels
    adds rows and exchanges none.

    Args:
        labels: class of every row, ``(N,)``.
        train: the training rows.
        per_class: labels that are used of every class, >= 1; ``None`` for all.
        seed: seed of the choice, >= 0.
        class_names: name of every class.

    Returns:
        The rows whose labels are used, and the other training rows, each in ascending order.

    Raises:
        DataError: a class has fewer training rows.

    Example:
        >>> labels, train = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 2, 3, 4])
        >>> used, rest = few_labels(
        ...     labels, train, per_class=1, seed=0, class_names=["cat", "dog"]
        ... )
        >>> sorted(labels[used].tolist()), len(rest)
        ([0, 1], 3)
    """
    if per_class is None:
        return train, train.new_empty(0)
    generator = torch.Generator().manual_seed(seed)
    order = train[torch.randperm(len(train), generator=generator)]
    used = []
    for number, name in enumerate(class_names):
        rows = order[labels[order] == number]
        if len(rows) < per_class:
            raise DataError(
                f"labels_per_class must be at most the training rows of every class, got "
                f"{per_class} labels and {len(rows)} rows of class {name!r}; use fewer labels, or "
                "make the validation and test splits smaller."
            )
        used.append(rows[:per_class])
    chosen = torch.cat(used).sort().values
    return chosen, train[~torch.isin(train, chosen)]


def _with_every_class_training(labels: Tensor, split: Split) -> Split:
    """Move one row of each class that does not train to training, and sort the rows."""
    parts = {name: set(rows.tolist()) for name, rows in split._asdict().items()}
    for label in set(labels.tolist()) - set(labels[split.train].tolist()):
        donor = "val" if (labels[split.val] == label).any() else "test"
        rows: Tensor = getattr(split, donor)
        row = int(rows[labels[rows] == label][0])
        parts[donor].remove(row)
        parts["train"].add(row)
    return Split(**{name: torch.tensor(sorted(rows)).long() for name, rows in parts.items()})


def _evenly(count: int, fraction: float) -> Tensor:
    """Mark ``round(count * fraction)`` of ``count`` places, at even distances."""
    steps = torch.arange(count + 1, dtype=torch.float64) * fraction + _ROUND_HALF_UP
    return steps.floor().diff() > 0


def _read_rows(path: str, *, row_count: int) -> list[int]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"an index file must be a readable text file, got {path!r} ({error}); "
            "correct its path in index_files."
        ) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        for word in line.split():
            rows.append(_row(word, row_count=row_count, where=f"on line {number} of {path}"))
    if not rows:
        raise DataError(f"an index file must name at least one row, got none in {path}.")
    return rows


def _row(word: str, *, row_count: int, where: str) -> int:
    # Published index files are often written as floats ("3.390000e+02").
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not value.is_integer():
        raise DataError(
            f"an index file must hold 0-based row numbers, got {word!r} {where}; "
            "write one whole number a line, without a header."
        )
    if not 0 <= value < row_count:
        raise DataError(
            f"row numbers must lie in [0, {row_count - 1}] for {row_count} rows, got {int(value)} "
            f"{where}; rows are counted from 0, and a header is not a row."
        )
    return int(value)
