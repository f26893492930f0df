"""The Brier score's parts: how far forecasts are from frequencies, and how much they tell apart."""

from typing import NamedTuple

import torch
from torch import Tensor

from stablelightning.checks import check_whole
from stablelightning.functional.calibration_error import check_count, class_bins


class BrierParts(NamedTuple):
    """``score = reliability - resolution + uncertainty + within_bins``, exactly.

    Attributes:
        score: the mean Brier score itself.
        reliability: squared distance of each bin's mean probability to the frequency in it, >= 0;
            0 for a calibrated classifier. Smaller is better.
        resolution: squared distance of each bin's frequency to that of all rows, >= 0; how much the
            forecasts tell apart. Larger is better.
        uncertainty: variance of the classes, in [0, 1 - 1/C]; the data's own, no forecast changes
            it.
        within_bins: variance of the probabilities within bins, less twice their covariance with the
            outcomes; what the bins do not see, and 0 where a bin holds one probability.
    """

    score: Tensor
    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor
    within_bins: Tensor


def brier_decomposition(
    probabilities: Tensor, target: Tensor, *, bins: int = 15, dim: int = 1
) -> BrierParts:
    """Split the mean Brier score, class by class in bins of equal width, and add up the classes.

    Args:
        probabilities: ``(N, C, ...)`` with the classes on ``dim``, or ``(N, ...)`` of labels (whose
            score is the squared distance to the target).
        target: class indices ``(N, ...)``, or 0 and 1 in the shape of the labels.
        bins: >= 1.
        dim: dimension of the classes.

    Returns:
        Five scalars.

    Raises:
        DataError: what are no probabilities, targets out of range, or no rows.
        RecipeError: ``bins`` is no positive whole number.

    Source:
        Murphy 1973, "A new vector partition of the probability score"; Stephenson, Coelho, Jolliffe
        2008, "Two extra components in the Brier score decomposition" (within bins).

    Example:
        >>> probabilities = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75]])
        >>> parts = brier_decomposition(probabilities, torch.tensor([0, 1, 1]))
        >>> parts.score, parts.reliability - parts.resolution + parts.uncertainty
        (tensor(0.4583), tensor(0.4583))
    """
    check_whole("bins", bins, least=1, hint="15 is usual")
    parts = brier_parts_of(class_bins(probabilities, target, bins=bins, dim=dim))
    dtype = torch.promote_types(probabilities.dtype, torch.float32)
    return BrierParts(*(part.to(dtype) for part in parts))


def brier_parts_of(sums: Tensor) -> BrierParts:
    """:func:`brier_decomposition` of :func:`~.calibration_error.class_bins`, in float64."""
    count, probability, hits, squares, joint = sums
    check_count(count)
    rows = count.sum(1, keepdim=True)
    frequency = hits.sum(1, keepdim=True) / rows
    safe = count.clamp(min=1)  # an empty bin has only zeros
    mean, hit = probability / safe, hits / safe
    reliability = (count * (mean - hit).square() / rows).sum()
    resolution = (count * (hit - frequency).square() / rows).sum()
    variance = squares - count * mean.square()
    covariance = joint - count * mean * hit
    return BrierParts(
        score=((squares - 2 * joint + hits) / rows).sum(),
        reliability=reliability,
        resolution=resolution,
        uncertainty=(frequency * (1 - frequency)).sum(),
        within_bins=((variance - 2 * covariance) / rows).sum(),
    )
