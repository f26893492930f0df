"""Any CSV or Parquet file as a Lightning data module."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from stablelightning.data.base import Part, SplitDataModule
from stablelightning.data.encoding import Encoding, Table
from stablelightning.data.splits import Split, check_classes_train, split_by_files, split_rows
from stablelightning.data.table import (
    check_columns,
    class_values,
    numeric_values,
    read_table,
)
from stablelightning.errors import DataError, RecipeError
from stablelightning.optional import require

_TEXT_FEATURE = "turn it into numbers, or name the column in ignore."
_TEXT_TARGET = "correct the value, or set task to classification if the target is a class."


class TabularData(SplitDataModule):
    """Rows of a CSV or Parquet file: every column but the target is an input.

    Inputs are standardised by the mean and standard deviation of the *training rows only*, and so
    is the target of a regression. The statistics travel in the checkpoint, so that new rows are
    scaled exactly as the model was trained, whatever else their file holds.

    Batches are ``(inputs, target)``: inputs float32 ``(B, F)``; target float32 ``(B,)`` in training
    units for regression, int64 ``(B,)`` for classification. With ``predict_path``, ``predict``
    yields bare inputs.

    Args:
        path: a ``.csv``, ``.tsv``, ``.parquet`` or ``.pq`` file with named columns. ``None`` for
            scikit-learn's diabetes data (442 patients, 10 measurements, disease progression).
        target: name of the column to predict.
        task: ``"regression"``, or ``"classification"`` (text or whole numbers in the target).
        ignore: columns that are no inputs, such as an identifier.
        index_files: paths of text files of 0-based row numbers, under the keys ``train``, ``test``
            and, if wanted, ``val``. They replace the split by seed; without ``val``, validation
            rows are drawn from the training file's.
        batch_size: rows of a batch, on each process.
        val_fraction: share of the rows that validate (of the training file's, with index files).
        test_fraction: share of the rows that test; not used with index files.
        seed: seed of the split; classes keep their proportions in it.
        num_workers: processes that load data; 0 is fastest for tables, which fit in memory.
        predict_path: a file whose rows ``predict`` answers; it needs no target column. ``None``
            to predict the test rows.

    Raises:
        RecipeError: a setting is out of its range.
        DataError: from ``setup``: the data cannot be used; one line says where and why.

    Example:
        >>> data = TabularData(batch_size=32)
        >>> data.setup()
        >>> inputs, target = next(iter(data.train_dataloader()))
        >>> inputs.shape, target.shape, data.num_features
        (torch.Size([32, 10]), torch.Size([32]), 10)
        >>> mean, std = data.target_scale      # back to the target's units: target * std + mean
        >>> 100 < mean < 200
        True
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        target: str = "target",
        task: Literal["regression", "classification"] = "regression",
        ignore: tuple[str, ...] = (),
        index_files: Mapping[str, str] | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        num_workers: int = 0,
        predict_path: str | Path | None = None,
    ) -> None:
        # Checkpoints hold the settings and are read back without pickle: plain types only.
        path = None if path is None else str(path)
        predict_path = None if predict_path is None else str(predict_path)
        ignore = _plain_names(ignore)
        index_files = _plain_index_files(index_files)
        super().__init__(
            batch_size=batch_size,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
            num_workers=num_workers,
        )
        if task not in ("regression", "classification"):
            raise RecipeError(f"task must be regression or classification, got {task!r}.")
        if target in ignore:
            raise RecipeError(f"the target cannot be ignored, got target={target!r} in ignore.")
        self.path = path
        self.target = target
        self.task = task
        self.ignore = ignore
        self.index_files = index_files
        self.predict_path = predict_path
        self._table: Table | None = None
        self._encoding: Encoding | None = None
        self._unlabelled: Any = None

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data, once; ``predict`` of other rows reads those alone."""
        if stage != "predict" or self.predict_path is None:
            self._read()
            self._fitted()
        elif self._unlabelled is None:
            self._unlabelled = read_table(self.predict_path)

    @property
    def num_features(self) -> int:
        """Number of input columns."""
        return len(self._fitted().features)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the input columns, in the order of the inputs' last axis."""
        return self._fitted().features

    @property
    def num_outputs(self) -> int:
        """Numbers that a model should give for a row: the classes, or 1 for regression."""
        return self.num_classes or 1

    @property
    def num_classes(self) -> int | None:
        """Number of classes; ``None`` for regression."""
        names = self.class_names
        return None if names is None else len(names)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Name of every class, in the order of its number; ``None`` for regression."""
        return self._fitted().class_names

    @property
    def target_scale(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the training target, in its own units.

        ``target * std + mean`` undoes the standardisation; ``None`` for classification.
        """
        fitted = self._fitted().target
        return None if fitted is None else (fitted.mean.item(), fitted.scale.item())

    @property
    def test_rows(self) -> Tensor:
        """Row of the file (from 0, without the header) of every test example, in test order."""
        return self._read().split.test

    def part(self, name: Part) -> Dataset[Any] | None:
        """Return the rows of one split, encoded; ``None`` if it has none."""
        table, encoding = self._read(), self._fitted()
        rows: Tensor = getattr(table.split, name)
        if not len(rows):
            return None
        return TensorDataset(*(encoded[rows] for encoded in encoding.apply(table)))

    def predict_part(self) -> Dataset[Any] | None:
        """Return the inputs of every row of ``predict_path``; without one, the test split."""
        if self.predict_path is None:
            return self.part("test")
        self.setup("predict")
        frame, features = self._unlabelled, self.feature_names
        check_columns(frame, features, role="every input", source=self.predict_path)
        values = numeric_values(frame, features, source=self.predict_path, remedy=_TEXT_FEATURE)
        return _Rows(self._fitted().inputs.apply(values))

    def state_dict(self) -> dict[str, Any]:
        """Return the training rows' statistics, for the checkpoint; plain types and tensors."""
        if self._table is None and self._encoding is None:
            return {}
        return self._fitted().state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's statistics and classes, so that data is scaled as in its training.

        Raises:
            DataError: the file lacks a column of the checkpoint, or has classes that it has not.
        """
        if not state_dict:
            return
        encoding = Encoding.from_state(state_dict)
        if self._table is not None:
            encoding.check(self._table)
        self._encoding = encoding

    def _read(self) -> Table:
        if self._table is None:
            table = self._load()
            if self._encoding is not None:
                self._encoding.check(table)
            self._table = table
        return self._table

    def _fitted(self) -> Encoding:
        if self._encoding is None:
            self._encoding = Encoding.fit(self._read())
        return self._encoding

    def _load(self) -> Table:
        frame, source = self._frame()
        check_columns(frame, [self.target], role="target", source=source)
        check_columns(frame, self.ignore, role="ignore", source=source)
        unused = {self.target, *self.ignore}
        features = tuple(column for column in frame.columns if column not in unused)
        if not features:
            raise DataError(f"there must be an input column beside the target, got none: {source}.")
        inputs = numeric_values(frame, features, source=source, remedy=_TEXT_FEATURE)
        if self.task == "classification":
            codes, names = class_values(frame, self.target, source=source)
            split = self._split(codes)
            check_classes_train(codes, split.train, names)  # index files may leave one out
            return Table(features, inputs, codes, names, split)
        target = numeric_values(frame, [self.target], source=source, remedy=_TEXT_TARGET)[:, 0]
        split = self._split(torch.zeros(len(frame), dtype=torch.long))
        return Table(features, inputs, target, None, split)

    def _frame(self) -> tuple[Any, str]:
        if self.path is not None:
            return read_table(self.path), self.path
        datasets = require("sklearn.datasets", extra="recipes")
        require("pandas", extra="recipes")
        return datasets.load_diabetes(as_frame=True, scaled=False).frame, "the diabetes data"

    def _split(self, labels: Tensor) -> Split:
        if self.index_files is None:
            return split_rows(
                labels,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.seed,
            )
        return split_by_files(
            labels, self.index_files, val_fraction=self.val_fraction, seed=self.seed
        )


class _Rows(Dataset[Tensor]):
    """Bare inputs, where a TensorDataset would wrap each in a tuple."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Tensor:
        return self.inputs[row]


def _plain_names(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise RecipeError(f"ignore must be a list of column names, got {names!r}; write [{names}].")
    return tuple(str(name) for name in names)


def _plain_index_files(files: Mapping[str, str] | None) -> dict[str, str] | None:
    if files is None:
        return None
    if not {"train", "test"} <= set(files) <= {"train", "val", "test"}:
        raise RecipeError(
            "index_files must name a file for train and for test, and may name one for val, got "
            f"{', '.join(files) or 'none'}; correct the keys."
        )
    return {name: str(path) for name, path in files.items()}
