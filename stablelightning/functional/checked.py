"""What a score may be computed from: refused in one line before it becomes a wrong number."""

import torch
from torch import Tensor

from stablelightning.errors import DataError
from stablelightning.functional.scores import at_least_single
from stablelightning.functional.uncertainty import SUM_TOLERANCE, SUM_TOLERANCE_UNITS


def class_rows(probabilities: Tensor, target: Tensor, *, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Check probabilities and their targets, and lay them out as one row per decision.

    One synchronisation with the device.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``; or, in the target's own shape,
            the probability of each of several independent labels (of one: a binary classifier).
        target: class indices ``(N, ...)`` in [0, C), or 0 and 1 for labels.
        dim: dimension of the classes.

    Returns:
        ``(M, C)`` probabilities, in float32 at least, and ``(M,)`` class indices; a label is a
        decision between two classes.

    Raises:
        DataError: logits, rows that do not sum to 1, NaN, targets out of range, or other shapes.

    Example:
        >>> class_rows(torch.tensor([0.25, 1.0]), torch.tensor([0, 1]))
        (tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]]), tensor([0, 1]))
        >>> class_rows(torch.tensor([[2.0, -1.0]]), torch.tensor([0]))
        Traceback (most recent call last):
        ...
        stablelightning.errors.DataError: probabilities must lie in [0, 1], got -1 to 2, which looks
        like logits; pass logits.softmax(1), or the mean of a Prediction.
    """
    if probabilities.shape == target.shape:
        rows = at_least_single(probabilities).flatten()
        target = target.flatten()
        _refuse(rows, target, most=1, sums=rows.new_ones(1), tolerance=SUM_TOLERANCE)
        return torch.stack([1 - rows, rows], 1), target.long()
    expected = list(probabilities.shape)
    classes = expected.pop(dim)
    if list(target.shape) != expected:
        raise DataError(
            f"target must have the shape of the probabilities without the classes "
            f"{tuple(expected)}, got {tuple(target.shape)}; pass class indices, not one-hot rows."
        )
    precision = torch.finfo(probabilities.dtype).eps if probabilities.is_floating_point() else 0.0
    tolerance = max(SUM_TOLERANCE, SUM_TOLERANCE_UNITS * precision)
    rows = at_least_single(probabilities).movedim(dim, -1).reshape(-1, classes)
    target = target.flatten()
    _refuse(rows, target, most=classes - 1, sums=rows.sum(1), tolerance=tolerance)
    return rows, target.long()


def check_scores(name: str, scores: Tensor, *, rows: int | None = None) -> Tensor:
    """Check one number per row, such as an uncertainty, and flatten it.

    Args:
        name: of what it is, for the message.
        scores: any shape.
        rows: how many there must be; ``None`` takes any number but 0.

    Returns:
        ``(M,)``, in float32 at least.

    Raises:
        DataError: NaN, no rows, or another number of them.

    Example:
        >>> check_scores("uncertainty", torch.tensor([0.5, float("nan")]))
        Traceback (most recent call last):
        ...
        stablelightning.errors.DataError: uncertainty must not be NaN, got 1 of 2 rows; look for it
        in the inputs, or leave those rows out.
    """
    scores = at_least_single(scores).flatten()
    if rows is not None and len(scores) != rows:
        raise DataError(
            f"every row needs one {name}, got {len(scores)} for {rows} rows; reduce it to one "
            "number per row."
        )
    if rows is None and len(scores) == 0:
        raise DataError(f"{name} must have at least one row, got none; look at what was selected.")
    unknown = int(torch.isnan(scores).sum())
    if unknown:
        raise DataError(
            f"{name} must not be NaN, got {unknown} of {len(scores)} rows; look for it in the "
            "inputs, or leave those rows out."
        )
    return scores


def _refuse(rows: Tensor, target: Tensor, *, most: int, sums: Tensor, tolerance: float) -> None:
    if rows.numel() == 0:
        return
    if target.is_floating_point() and bool((target != target.round()).any()):
        raise DataError(
            "target must hold class indices, got numbers in between; the metrics of a regression "
            "are others."
        )
    # One transfer for all that is asked.
    ends = torch.stack([*rows.aminmax(), *sums.aminmax(), *target.to(rows.dtype).aminmax()])
    least, largest, lightest, heaviest, low, high = ends.tolist()
    if least != least:
        raise DataError(
            f"probabilities must not be NaN, got {int(rows.isnan().any(-1).sum())} of {len(rows)} "
            "rows; look for it in the inputs, or in the model."
        )
    # Rounding may carry a probability over 1.
    if least < 0 or largest > 1 + min(tolerance, SUM_TOLERANCE):
        raise DataError(
            f"probabilities must lie in [0, 1], got {least:.4g} to {largest:.4g}, which looks like "
            "logits; pass logits.softmax(1), or the mean of a Prediction."
        )
    if max(1 - lightest, heaviest - 1) > tolerance:
        row = int((sums - 1).abs().argmax())
        raise DataError(
            f"probabilities must sum to 1 over the classes, got {sums[row].item():.4g} in row "
            f"{row}; divide by the sum, or name the dimension of the classes."
        )
    if low < 0 or high > most:
        raise DataError(
            f"target must lie in [0, {most}], got {low:g} to {high:g}; leave out the rows that "
            "have no label."
        )
