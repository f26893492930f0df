"""Differences of pairs, with their intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student

#: Of every interval that is printed.
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; the bounds are NaN for fewer than two values."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean.

    Example:
        >>> print(interval([1.0, 2.0, 3.0]))
        2.00 [-0.48, 4.48]
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    half = student.ppf((1 + LEVEL) / 2, len(values) - 1)
    half *= statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def differences(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of ``first - second``, pair by pair."""
    return interval([a - b for a, b in zip(first, second, strict=True)])
