"""Predictions as columns of a table: one number, one text or one list for each row."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stablelightning.functional.abstain import REASONS
from stablelightning.optional import require

Column = Tensor | Sequence[Any]


def plain_column(value: Tensor) -> Tensor:
    """A tensor on the CPU in a number format that files know.

    Example:
        >>> plain_column(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    value = value.detach().cpu()
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def is_classification(rows: Mapping[str, Any]) -> bool:
    """Whether rows look like those of a classifier: several means, and at most one class as target.

    Args:
        rows: with their ``mean``.

    Example:
        >>> is_classification({"mean": torch.rand(5, 3)})
        True
        >>> is_classification({"mean": torch.rand(5)})
        False
    """
    target = rows.get("target")
    one_class_each = target is None or (target.ndim == 1 and not target.is_floating_point())
    return rows["mean"].ndim == 2 and rows["mean"].shape[1] > 1 and one_class_each


def flat_columns(
    rows: Mapping[str, Column], *, classification: bool | None = None
) -> dict[str, Any]:
    """Spread rows over the columns of a table.

    One number for each row stands under its own name, a vector as ``mean_0``, ``mean_1``, ...;
    anything larger (dense predictions) as one list for each row, flattened. In front of the
    ``mean`` of a classifier stands ``prediction``, its most probable class. A ``reason`` stands in
    words.

    Args:
        rows: by name, each with one entry per row: tensors ``(N, ...)`` on the CPU, or sequences.
        classification: whether ``mean`` holds the probabilities of classes; ``None`` looks at it.

    Returns:
        NumPy arrays, Arrow lists and sequences of equal length, for ``pyarrow.table``.

    Example:
        >>> rows = {"mean": torch.tensor([[0.25, 0.75]]), "file": ["a.png"]}
        >>> list(flat_columns(rows))
        ['prediction', 'mean_0', 'mean_1', 'file']
    """
    if classification is None:
        classification = "mean" in rows and is_classification(rows)
    columns: dict[str, Any] = {}
    for name, value in rows.items():
        if not isinstance(value, Tensor):
            columns[name] = value
            continue
        if name == "reason" and value.dtype == torch.int64:
            columns[name] = [REASONS[number] for number in value.tolist()]
            continue
        if name == "mean" and classification and value.ndim == 2:
            columns["prediction"] = value.argmax(1).numpy()
        if value.ndim == 1:
            columns[name] = value.numpy()
        elif value.ndim == 2:
            columns |= {f"{name}_{i}": value[:, i].numpy() for i in range(value.shape[1])}
        else:
            columns[name] = _lists(value.flatten(1))
    return columns


def _lists(values: Tensor) -> Any:
    """One list for each row, without a Python object for each number."""
    pyarrow = require("pyarrow", extra="recipes")
    rows, width = values.shape
    offsets = torch.arange(rows + 1, dtype=torch.int32) * width
    return pyarrow.ListArray.from_arrays(offsets.numpy(), values.reshape(-1).numpy())
