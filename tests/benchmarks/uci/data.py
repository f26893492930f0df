"""A folder of the collection's layout: one table, and which rows train and test in each split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stablelightning.errors import DataError

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

#: The settings of the published experiment, for a folder that does not say.
PUBLISHED_RATES = (0.005, 0.01, 0.05, 0.1)
PUBLISHED_EPOCHS = 40
#: The noise's standard deviation in parts of the target's, where no precisions are given.
_NOISE_PARTS = (0.1, 0.2, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Split:
    """Which rows of the table train, and which are kept for the end."""

    train: Rows
    test: Rows


@dataclass(frozen=True)
class Problem:
    """One data set: what is given, what is asked, and how it is split.

    ``rates``, ``precisions`` and ``epochs`` are those of the published experiment (precisions in
    the target's units to the power of -2); without a file of its own, a set has no precisions.
    """

    name: str
    inputs: Floats
    target: Floats
    splits: tuple[Split, ...]
    rates: tuple[float, ...]
    precisions: tuple[float, ...]
    epochs: int


@dataclass(frozen=True)
class Scaling:
    """Centre and spread of the training rows of a split; a constant column is only centred."""

    inputs: tuple[Floats, Floats]
    target: tuple[float, float]

    @classmethod
    def of(cls, problem: Problem, rows: Rows) -> "Scaling":
        inputs, target = problem.inputs[rows], problem.target[rows]
        spread = float(_spread(target[:, None])[0])
        return cls((inputs.mean(0), _spread(inputs)), (float(target.mean()), spread))

    def scaled(self, problem: Problem, rows: Rows) -> tuple[Floats, Floats]:
        """Inputs and target of some rows, both in parts of the training rows' spread."""
        (centre, spread), (middle, width) = self.inputs, self.target
        return (problem.inputs[rows] - centre) / spread, (problem.target[rows] - middle) / width


def _spread(columns: Floats) -> Floats:
    """Standard deviations; 1 where a column does not vary but for rounding."""
    spread = columns.std(0)
    rounding = 1e-9 * np.abs(columns).max(0)
    return np.where(spread > rounding, spread, 1.0)


def read(root: Path, name: str, *, splits: int) -> Problem:
    """Read a set and its first splits; all that there are, where fewer are there than asked.

    Raises:
        DataError: a file is missing or unreadable, or an index is outside of the table.
    """
    folder = root / name
    if not folder.is_dir():
        there = sorted(path.parent.name for path in root.glob("*/data.txt"))
        known = f"there are {', '.join(there)}" if there else "it holds no data sets"
        raise DataError(f"{root} has no folder {name}; {known}.")
    table = _numbers(folder / "data.txt", columns=True)
    columns = table.shape[1]
    features = _indices(folder / "index_features.txt", columns)
    target = _indices(folder / "index_target.txt", columns)
    if len(target) != 1:
        raise DataError(f"{folder / 'index_target.txt'} must name one column, got {len(target)}.")
    used = table[:, [*features, *target]]
    if not np.isfinite(used).all():
        row = int(np.flatnonzero(~np.isfinite(used).all(1))[0])
        raise DataError(f"{folder / 'data.txt'} has a missing value in row {row}; fill or drop it.")
    return Problem(
        name=name,
        inputs=table[:, features],
        target=table[:, target[0]],
        splits=_splits(folder, len(table), splits),
        rates=_settings(folder / "dropout_rates.txt") or PUBLISHED_RATES,
        precisions=_settings(folder / "tau_values.txt"),
        epochs=int((_settings(folder / "n_epochs.txt") or (PUBLISHED_EPOCHS,))[0]),
    )


def precisions_of(problem: Problem, rows: Rows) -> tuple[float, ...]:
    """The published precisions of the noise, or a few in parts of the training target's spread."""
    if problem.precisions:
        return problem.precisions
    spread = Scaling.of(problem, rows).target[1]
    return tuple(float((part * spread) ** -2) for part in _NOISE_PARTS)


def _splits(folder: Path, rows: int, asked: int) -> tuple[Split, ...]:
    there = 0
    while (folder / f"index_train_{there}.txt").exists():
        there += 1
    if not there:
        raise DataError(f"{folder} has no index_train_0.txt; the rows of split 0 are in it.")
    found = []
    for number in range(min(asked, there)):
        train, test = (
            _indices(folder / f"index_{part}_{number}.txt", rows) for part in ("train", "test")
        )
        if np.intersect1d(train, test).size:
            raise DataError(f"split {number} of {folder} trains on rows that it tests on.")
        if len(train) < 2:
            raise DataError(f"split {number} of {folder} must train on 2 rows, got {len(train)}.")
        found.append(Split(train, test))
    return tuple(found)


def _indices(path: Path, bound: int) -> Rows:
    indices = _numbers(path).round().astype(np.int64)
    if indices.min() < 0 or indices.max() >= bound:
        raise DataError(f"{path} must hold numbers in [0, {bound}), got {indices.max()}.")
    return indices


def _settings(path: Path) -> tuple[float, ...]:
    return tuple(_numbers(path).tolist()) if path.exists() else ()


def _numbers(path: Path, *, columns: bool = False) -> Floats:
    """Numbers between blanks or commas; a table (N, C) or, flat, (N,)."""
    try:
        text = path.read_text(encoding="utf-8-sig").replace(",", " ")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if not text.strip():
        raise DataError(f"{path} is empty.")
    try:
        numbers = np.loadtxt(text.splitlines(), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} must hold numbers only: {error}.") from error
    return numbers if columns else numbers.reshape(-1)
