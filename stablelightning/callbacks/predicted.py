"""What a ``predict_step`` returned, as columns with one entry for each row of the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, as_tensor

from stablelightning.errors import DataError, ModelError
from stablelightning.model.prediction import Prediction
from stablelightning.nn.heads import Gaussian
from stablelightning.report.columns import Column, plain_column

#: What a table of predictions does without: the samples by their size, the standard error because
#: it is of the sampling and not of the prediction, and what is the same in every row.
_LEFT_OUT = {"task", "samples", "standard_error", "samples_used", "engine", "corrected"}


def predicted_columns(output: Any) -> dict[str, Column]:
    """The entries of an output by name, each with one entry for each row.

    A :class:`~stablelightning.Prediction` gives its ``mean``, its uncertainties and whatever was
    calibrated and decided upon (``lower``, ``upper``, ``sets``, ``answered``, ``reason``); a tensor
    is the ``mean``; a ``Gaussian`` is ``mean`` and ``aleatoric``. A dict, a named tuple or a
    dataclass gives what it holds under its own keys, joined by dots where they are nested; a tuple
    or list gives ``output_0``, ``output_1``, ... What has no rows (numbers, ``None``) is left out.

    Args:
        output: of ``predict_step``, on any device.

    Returns:
        Tensors on the CPU and lists, not checked for their length.

    Raises:
        ModelError: there is nothing in it that has rows.

    Example:
        >>> import torch
        >>> list(predicted_columns(torch.zeros(4, 3)))
        ['mean']
        >>> list(predicted_columns({"logits": torch.zeros(4, 3), "names": ["a", "b", "c", "d"]}))
        ['logits', 'names']
    """
    columns: dict[str, Column] = {
        name: plain_column(value) if isinstance(value, Tensor) else value
        for name, value in _entries(output, "")
    }
    if not columns:
        raise ModelError(
            "predictions are written where predict_step returns a Prediction, tensors or a dict of "
            f"them, one entry for each row, got {type(output).__name__}; return them there."
        )
    return columns


def rows_by(columns: Mapping[str, Column], rows: int) -> dict[str, Column]:
    """The columns with ``rows`` entries each; tokens that were flattened are put side by side.

    Args:
        columns: of :func:`predicted_columns`.
        rows: of the batch.

    Raises:
        DataError: a column has another number of entries, and none that is a multiple.

    Example:
        >>> import torch
        >>> tokens = rows_by({"mean": torch.zeros(12, 5)}, 4)
        >>> tokens["mean"].shape
        torch.Size([4, 3, 5])
    """
    fitting: dict[str, Column] = {}
    for name, column in columns.items():
        entries = len(column)
        if entries != rows and isinstance(column, Tensor) and rows and entries % rows == 0:
            column = column.view(rows, entries // rows, *column.shape[1:])
        elif entries != rows:
            raise DataError(
                f"predict_step must return one entry for each of the {rows} rows of its batch, got "
                f"{entries} as {name}; return the rows in their order, or override "
                "WritePredictions.columns_of."
            )
        fitting[name] = column
    return fitting


def _entries(output: Any, name: str) -> list[tuple[str, Any]]:
    """Everything with rows in an output, by its name."""
    inside: dict[str, Any]
    if isinstance(output, Prediction):
        inside = _of_prediction(output)
    elif isinstance(output, Gaussian):
        inside = {"mean": output.mean, "aleatoric": output.variance}
    elif isinstance(output, Mapping):
        inside = {str(key): value for key, value in output.items()}
    elif is_dataclass(output) and not isinstance(output, type):
        inside = {f.name: getattr(output, f.name) for f in fields(output)}
    elif isinstance(output, tuple) and hasattr(output, "_asdict"):
        inside = output._asdict()
    elif isinstance(output, tuple | list) and not _is_column(output):
        if len(output) == 1:
            return _entries(output[0], name)
        inside = {f"output_{number}": value for number, value in enumerate(output)}
    else:
        return _column(output, name)
    return [
        entry
        for key, value in inside.items()
        for entry in _entries(value, f"{name}.{key}" if name else key)
    ]


def _of_prediction(prediction: Prediction) -> dict[str, Any]:
    names = [f.name for f in fields(prediction) if f.name not in _LEFT_OUT]
    inside = {name: getattr(prediction, name) for name in names}
    if prediction.reason is not None:
        inside["reason"] = prediction.reasons  # in words: a table is read by people
    if prediction.task == "regression" and prediction.mean.shape[1:] == (1,):
        return {
            name: value.squeeze(1) if isinstance(value, Tensor) and value.ndim == 2 else value
            for name, value in inside.items()
        }
    return inside


def _is_column(values: Sequence[Any]) -> bool:
    """A list of words or of numbers, one for each row."""
    return bool(values) and all(isinstance(value, str | int | float) for value in values)


def _column(value: Any, name: str) -> list[tuple[str, Any]]:
    if (
        type(value).__module__ == "numpy"
        and getattr(value, "ndim", None)
        and value.dtype.kind != "U"
    ):
        value = as_tensor(value)
    if isinstance(value, Tensor):
        return [(name or "mean", value)] if value.ndim else []
    return [(name or "mean", list(value))] if isinstance(value, list | tuple) else []
