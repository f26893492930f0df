"""What is compared row by row must have one shape: broadcasting would pair rows wrongly."""

from collections.abc import Iterable

from torch import Tensor

from stablelightning.errors import DataError


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes.

    Args:
        tensors: by the names that the message shall use.

    Raises:
        DataError: they differ.

    Example:
        >>> import torch
        >>> check_same_shape(mean=torch.zeros(3, 1), target=torch.zeros(3))
        Traceback (most recent call last):
        ...
        stablelightning.errors.DataError: mean and target must have the same shape, got (3, 1) and
        (3,); reshape one of them, broadcasting would pair rows wrongly.
    """
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if len(set(shapes)) > 1:
        raise DataError(
            f"{_listed(tensors)} must have the same shape, got {_listed(map(str, shapes))}; "
            "reshape one of them, broadcasting would pair rows wrongly."
        )


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}"
