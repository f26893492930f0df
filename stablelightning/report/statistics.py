"""The little statistics that tables and figures share."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stablelightning.errors import DataError

Array = Any  # a numpy array, a tensor on any device, or nested sequences of numbers
Floats = npt.NDArray[np.float64]


def as_floats(values: Array) -> Floats:
    """Bring a tensor on any device, an array or nested sequences to float64 of numpy.

    Args:
        values: any shape; of a tensor, also bfloat16, and with or without gradient.

    Example:
        >>> as_floats(torch.ones(2, dtype=torch.bfloat16)).tolist()
        [1.0, 1.0]
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def wilson_interval(
    successes: Floats, trials: Floats, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    """Bounds of a binomial proportion, sensible also for few trials and at 0 and 1.

    Args:
        successes: numbers of successes, any shape.
        trials: numbers of trials, > 0, same shape.
        level: two-sided, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].

    Source:
        Wilson 1927, JASA 22(158), equation 4.

    Example:
        >>> low, high = wilson_interval(np.array([10.0]), np.array([10.0]))
        >>> round(float(low[0]), 4), round(float(high[0]), 4)
        (0.7225, 1.0)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def auroc(known: Array, unknown: Array) -> float:
    """The chance that a random unknown input scores higher than a random known one.

    Args:
        known: ``(N,)`` scores of any range; larger is less certain.
        unknown: ``(M,)``.

    Returns:
        A number in [0, 1], ties counted half; NaN where a score is NaN.

    Raises:
        DataError: one of the two is empty.

    Example:
        >>> auroc([0.1, 0.2], [0.15, 5000.0])
        0.75
    """
    from torchmetrics.functional.classification import binary_auroc

    scores = np.concatenate([as_floats(known).ravel(), as_floats(unknown).ravel()])
    lengths = [np.size(as_floats(known)), np.size(as_floats(unknown))]
    if not all(lengths):
        raise DataError(
            f"an AUROC needs at least one score on both sides, got {lengths[0]} known and "
            f"{lengths[1]} unknown; leave the empty set out, or give it data."
        )
    if np.isnan(scores).any():
        return math.nan
    # torchmetrics sends scores outside [0, 1] through a sigmoid, which ties all large variances.
    # Ranks keep the order, and fit between 0 and 1.
    ranks = np.unique(scores, return_inverse=True)[1] / len(scores)
    label = np.repeat([0, 1], lengths)
    return float(binary_auroc(torch.as_tensor(ranks), torch.as_tensor(label)))
