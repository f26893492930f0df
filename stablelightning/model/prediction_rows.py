"""Rows of predictions: taking some of them, and putting those of several batches together."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from stablelightning.errors import DataError
from stablelightning.model.prediction import Prediction

#: The one field with the samples before the rows.
_SAMPLES = "samples"


def take_rows(prediction: Prediction, rows: Tensor) -> Prediction:
    """The same prediction of some of its rows.

    Args:
        prediction: of N rows.
        rows: ``(M,)`` indices, or ``(N,)`` bool.

    Example:
        >>> import stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> prediction = sl.mc_dropout(Sequential(Linear(2, 3), Dropout()), torch.ones(4, 2))
        >>> take_rows(prediction, torch.tensor([0, 2])).mean.shape
        torch.Size([2, 3])
    """
    rows = rows.to(prediction.mean.device)

    def taken(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value[:, rows] if name == _SAMPLES else value[rows]

    return _mapped(prediction, taken)


def join_rows(predictions: Sequence[Prediction]) -> Prediction:
    """One prediction of the rows of several, in their order.

    Samples are kept where every part has as many; the fewest that a part used are told.

    Raises:
        DataError: there is nothing to join, or the parts are of different tasks.

    Example:
        >>> import stablelightning as sl
        >>> from torch.nn import Dropout, Linear, Sequential
        >>> part = sl.mc_dropout(Sequential(Linear(2, 3), Dropout()), torch.ones(4, 2))
        >>> join_rows([part, part]).mean.shape
        torch.Size([8, 3])
    """
    tasks = sorted({prediction.task for prediction in predictions})
    if len(tasks) != 1:
        raise DataError(
            "predictions are joined where all are of one task, got "
            f"{' and '.join(tasks) or 'no prediction'}; name the task (task=...)."
        )
    used = {prediction.samples_used for prediction in predictions}
    if len(used) > 1:  # a tolerance stopped some batches early
        predictions = [replace(prediction, samples=None) for prediction in predictions]
    first = predictions[0]
    joined = {
        field.name: _joined(field.name, [getattr(p, field.name) for p in predictions])
        for field in fields(Prediction)
    }
    return replace(first, **{**joined, "samples_used": min(used)})


def _joined(name: str, values: list[Any]) -> Any:
    if name == _SAMPLES and values[0] is not None:
        flat, specs = zip(*(tree_flatten(value) for value in values), strict=True)
        leaves = [torch.cat(parts, dim=1) for parts in zip(*flat, strict=True)]
        return tree_unflatten(leaves, specs[0])
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _mapped(prediction: Prediction, change: Callable[[str, Any], Any]) -> Prediction:
    def changed(name: str) -> Any:
        return tree_map(lambda value: change(name, value), getattr(prediction, name))

    return Prediction(**{field.name: changed(field.name) for field in fields(prediction)})
