"""The numbers a run leaves behind: ``summary.json`` and ``predictions.parquet``."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablelightning.errors import DataError, StableLightningWarning
from stablelightning.files import written_whole
from stablelightning.functional.abstain import REASONS
from stablelightning.optional import require
from stablelightning.report.columns import flat_columns, is_classification, plain_column
from stablelightning.report.statistics import auroc

Summary = dict[str, float | None]


def ood_auroc(
    rows: Mapping[str, Tensor], out_rows: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """Measure how well each uncertainty tells unknown inputs from known ones.

    Args:
        rows: ``EstimateUncertainty.rows`` of the test set.
        out_rows: the same of every out-of-distribution set, by its name.

    Returns:
        ``ood/<set>/auroc_<score>`` in [0, 1]; 0.5 is chance, 1 separates fully. Scores of a
        classifier are ``predictive_entropy`` and ``mutual_information`` of the samples,
        ``max_softmax`` of the plain forward pass and ``max_softmax_mc`` of the sampled mean (both
        as 1 - confidence); of a regression ``total_variance`` and ``epistemic_variance``. A score
        that holds NaN gives NaN.

    Raises:
        DataError: a set is empty.

    Source:
        Hendrycks & Gimpel 2017, arXiv:1610.02136 (maximum softmax as the baseline, AUROC).

    Example:
        >>> known = {"mean": torch.tensor([1.0, 2.0]), "total": torch.tensor([0.1, 0.2])}
        >>> far = {"mean": torch.tensor([9.0, 8.0]), "total": torch.tensor([5.0, 0.15])}
        >>> ood_auroc(known, {"far": far})
        {'ood/far/auroc_total_variance': 0.75}
    """
    known = _scores(rows)
    result: dict[str, float] = {}
    for name, other in out_rows.items():
        unknown = _scores(other)
        for score in known.keys() & unknown.keys():
            result[f"ood/{name}/auroc_{score}"] = auroc(known[score], unknown[score])
    return dict(sorted(result.items()))


def _scores(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every score of a row that grows with its uncertainty."""
    if rows["mean"].ndim < 2:
        names = {"total": "total_variance", "epistemic": "epistemic_variance"}
        return {names[key]: rows[key] for key in names if key in rows}
    names = {"total": "predictive_entropy", "epistemic": "mutual_information"}
    scores = {names[key]: rows[key] for key in names if key in rows}
    target = rows.get("target")
    several_labels_each = target is not None and target.ndim == rows["mean"].ndim == 2
    if not several_labels_each:
        scores["max_softmax_mc"] = 1 - rows["mean"].double().amax(1)
        if "deterministic" in rows:
            scores["max_softmax"] = 1 - rows["deterministic"].double().amax(1)
    return {name: _one_per_row(score) for name, score in scores.items()}


def _one_per_row(score: Tensor) -> Tensor:
    # Dense and multi-label rows hold one uncertainty per pixel or label; a set is known or unknown
    # by the row, so the row's mean stands for it.
    return score.double().flatten(1).mean(1) if score.ndim > 1 else score.double()


def build_summary(*parts: Mapping[str, Any]) -> Summary:
    """Merge flat dictionaries of numbers to one, ready for ``summary.json``.

    Args:
        parts: each ``concern/quantity`` to a number or a tensor of one element. Where two parts
            hold the same key, the later one wins.

    Returns:
        Plain floats and ``None``, keys sorted. JSON knows neither NaN nor infinity, so such a
        number becomes ``None`` (``null`` in the file): it was computed and has no value. A
        :class:`~stablelightning.errors.StableLightningWarning` names these keys and their values.

    Raises:
        DataError: a value is not one number.

    Example:
        >>> build_summary({"run/seconds": 3}, {"ood/far/auroc_entropy": torch.tensor(0.5)})
        {'ood/far/auroc_entropy': 0.5, 'run/seconds': 3.0}
    """
    merged = {key: _number(key, value) for part in parts for key, value in part.items()}
    summary: Summary = {
        key: value if math.isfinite(value) else None for key, value in sorted(merged.items())
    }
    lost = [f"{key} is {merged[key]}" for key, value in summary.items() if value is None]
    if lost:
        warnings.warn(
            f"JSON holds finite numbers only, so {', '.join(lost)} and stands as null in the "
            "summary; look for non-finite inputs or predictions.",
            StableLightningWarning,
            stacklevel=2,
        )
    return summary


def _number(key: str, value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"a summary holds one number per key, got {type(value).__name__} for {key!r}; "
            "pass a float or a tensor of one element."
        ) from error


def write_summary(folder: str | os.PathLike[str], summary: Mapping[str, float | None]) -> Path:
    """Write ``summary.json`` into ``folder``, whole or not at all, keys sorted.

    Args:
        folder: made if it is not there; an old ``summary.json`` is replaced.
        summary: what :func:`build_summary` gives.

    Raises:
        OutputError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> path = write_summary(tempfile.mkdtemp(), {"run/seconds": 3.0})
        >>> path.name, json.loads(path.read_text())
        ('summary.json', {'run/seconds': 3.0})
    """
    path = Path(folder) / "summary.json"
    with written_whole(path) as temporary:
        text = json.dumps(dict(summary), indent=2, sort_keys=True, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def write_predictions(
    folder: str | os.PathLike[str],
    rows: Mapping[str, Tensor],
    *,
    name: str = "predictions.parquet",
    files: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write one row per test example, whole or not at all, sorted by index.

    Columns are the keys of ``rows``: those with one number per row under their own name, those
    with a vector as ``mean_0``, ``mean_1``, ...; anything larger (dense predictions) as a list,
    flattened. A classifier's rows also get ``prediction``, the class of the largest mean
    probability.

    Args:
        folder: made if it is not there.
        rows: ``EstimateUncertainty.rows``, tensors of equal length, on any device.
        name: file name; an old file of this name is replaced.
        files: path of the file that each example comes from, by its index: a column ``file``.
        class_names: name of every class: a column ``prediction_name`` of a classifier.

    Raises:
        DataError: the tensors differ in length.
        MissingPackageError: pyarrow is missing.
        OutputError: the folder cannot be written.

    Example:
        >>> import tempfile, pyarrow.parquet
        >>> rows = {"index": torch.tensor([1, 0]), "mean": torch.tensor([[0.9, 0.1], [0.2, 0.8]])}
        >>> pyarrow.parquet.read_table(write_predictions(tempfile.mkdtemp(), rows)).to_pydict()
        {'index': [0, 1], 'prediction': [1, 0], 'mean_0': [...], 'mean_1': [...]}
    """
    pyarrow = require("pyarrow", extra="recipes")
    parquet = require("pyarrow.parquet", extra="recipes")
    path = Path(folder) / name
    columns = flat_columns(_sorted_by_index(rows))
    if files is not None and "index" in columns:
        names = {"file": [files[index] for index in columns["index"]]}
        columns = {"index": columns.pop("index"), **names, **columns}
    if class_names is not None and "prediction" in columns:
        columns["prediction_name"] = [class_names[number] for number in columns["prediction"]]
    table = pyarrow.table(columns)
    with written_whole(path) as temporary:
        parquet.write_table(table, temporary)
    return path


def _sorted_by_index(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    host = {key: plain_column(value) for key, value in rows.items() if value is not None}
    lengths = {key: len(value) for key, value in host.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"every column of the predictions must have the same number of rows, got {lengths}; "
            "pass the rows of one test run."
        )
    if "index" not in host:
        return host
    order = torch.argsort(host["index"], stable=True)
    return {key: value[order] for key, value in host.items()}


def most_uncertain_rows(
    rows: Mapping[str, Tensor],
    *,
    by: str = "epistemic",
    count: int = 50,
    class_names: Sequence[str] | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """Pick the test rows of which the model is least sure, as a table for ``log_table``.

    Args:
        rows: ``EstimateUncertainty.rows``.
        by: the key to sort by, largest first.
        count: the most rows to return; >= 1.
        class_names: names in place of class numbers.

    Returns:
        Column names, and rows of plain values: index, target, prediction, confidence (of a
        classifier) and every uncertainty.

    Raises:
        DataError: ``rows`` has no ``by``.

    Example:
        >>> mean = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
        >>> rows = {"mean": mean, "epistemic": torch.tensor([0.125, 0.25])}
        >>> most_uncertain_rows(rows, count=1, class_names=["cat", "dog"])
        (['prediction', 'confidence', 'epistemic'], [['cat', 0.5, 0.25]])
    """
    if by not in rows:
        raise DataError(f"rows are sorted by one of {', '.join(sorted(rows))}, got {by!r}.")
    host = _sorted_by_index(rows)
    order = torch.argsort(_one_per_row(host[by]), descending=True, stable=True)[:count]
    table: dict[str, list[Any]] = {}
    for key, value in host.items():
        if key == "mean" and is_classification(host):
            confidence, prediction = value[order].max(1)
            table["prediction"] = _named(prediction, class_names)
            table["confidence"] = confidence.tolist()
        elif key == "target" and is_classification(host):
            table["target"] = _named(value[order], class_names)
        elif key == "reason":
            table[key] = [REASONS[number] for number in value[order].tolist()]
        elif value.ndim == 1:
            table["prediction" if key == "mean" else key] = value[order].tolist()
    return list(table), [list(row) for row in zip(*table.values(), strict=True)]


def _named(classes: Tensor, class_names: Sequence[str] | None) -> list[Any]:
    return [class_names[int(i)] if class_names else int(i) for i in classes]
