"""Intervals, quantiles and widths of a regression's predictions."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.checked import check_scores
from stablelightning.functional.intervals import (
    PERCENTS,
    check_level,
    check_variance,
    interval_coverage,
    interval_score,
    interval_width,
    level_counts,
    pinball_loss,
    quantile_error_of,
)
from stablelightning.functional.scores import at_least_single
from stablelightning.metrics.base import MeanScore, UncertaintyMetric
from stablelightning.metrics.distributions import Distribution, moments_of, probability_below
from stablelightning.model.prediction import Prediction

#: A Prediction with an interval; or its lower and upper ends, ``(N, ...)`` each.
Interval = Prediction | tuple[Tensor, Tensor]


class IntervalCoverage(MeanScore):
    """Share of the targets that lie in their intervals, to be held against their level.

    Neither large nor small is better: the level is right. Exact, two numbers.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Example:
        >>> import torch
        >>> metric = IntervalCoverage()
        >>> metric.update((torch.zeros(2), torch.ones(2)), torch.tensor([0.5, 2.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = None
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _concern = "coverage"

    def update(self, interval: Interval, target: Tensor) -> None:
        """Add rows.

        Args:
            interval: a Prediction with ``lower`` and ``upper``, or ``(lower, upper)``.
            target: ``(N, ...)``, in target units.

        Raises:
            DataError: no interval, shapes that differ, NaN, or ends that crossed.
        """
        lower, upper = _ends(interval)
        self._add(interval_coverage(lower, upper, target.to(lower.device)))


class IntervalWidth(MeanScore):
    """Mean width of the intervals, in target units; smaller is better at equal coverage.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Example:
        >>> import torch
        >>> metric = IntervalWidth()
        >>> metric.update((torch.zeros(2), torch.tensor([1.0, 2.0])))
        >>> metric.compute()
        tensor(1.5000)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "width"

    def update(self, interval: Interval, target: Tensor | None = None) -> None:
        """Add rows.

        Args:
            interval: a Prediction with ``lower`` and ``upper``, or ``(lower, upper)``.
            target: not looked at; here so that it can stand in a ``MetricCollection``.

        Raises:
            DataError: no interval, shapes that differ, NaN, or ends that crossed.
        """
        self._add(interval_width(*_ends(interval)))


class IntervalScore(MeanScore):
    """Width plus a fine for each target outside, in target units; smaller is better, and proper.

    Args:
        level: share of targets that the intervals promise to hold, in (0, 1); ``None`` takes that
            of each Prediction.
        **kwargs: of torchmetrics' ``Metric``.

    Raises:
        RecipeError: ``level`` is not in (0, 1).

    Source:
        Gneiting, Raftery 2007, "Strictly proper scoring rules, prediction, and estimation",
        equation 43.

    Example:
        >>> import torch
        >>> metric = IntervalScore(level=0.9)
        >>> metric.update((torch.zeros(2), torch.ones(2)), torch.tensor([0.5, 2.0]))
        >>> metric.compute()  # (1 + 21) / 2
        tensor(11.)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "interval_score"

    def __init__(self, level: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if level is not None:
            check_level("level", level)
        self.level = level

    def update(self, interval: Interval, target: Tensor) -> None:
        """Add rows.

        Args:
            interval: a Prediction with ``lower`` and ``upper``, or ``(lower, upper)``.
            target: ``(N, ...)``, in target units.

        Raises:
            DataError: no interval, no level, shapes that differ, NaN, or ends that crossed.
        """
        lower, upper = _ends(interval)
        level = self.level
        if level is None and isinstance(interval, Prediction):
            level = interval.level
        if level is None:
            raise DataError(
                "an interval score needs the level of the intervals, got none; make it with "
                "IntervalScore(level=0.9)."
            )
        self._add(interval_score(lower, upper, target.to(lower.device), level=level))


class PinballLoss(MeanScore):
    """Mean pinball loss of predicted quantiles, in target units; smaller is better, and proper.

    Args:
        levels: of the quantiles, each in (0, 1).
        **kwargs: of torchmetrics' ``Metric``.

    Raises:
        RecipeError: a level is not in (0, 1), or there are none.

    Source:
        Koenker, Bassett 1978, "Regression quantiles".

    Example:
        >>> import torch
        >>> metric = PinballLoss(levels=(0.1, 0.9))
        >>> metric.update(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]))
        >>> metric.compute()
        tensor(0.1000)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "pinball"

    def __init__(self, levels: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels = _checked_levels(levels)

    def update(self, quantiles: Tensor, target: Tensor) -> None:
        """Add rows.

        Args:
            quantiles: ``(N, ..., Q)``, in target units, one per level.
            target: ``(N, ...)``.

        Raises:
            DataError: shapes do not fit, or NaN.
        """
        values = pinball_loss(quantiles, target.to(quantiles.device), self.levels)
        self._add(check_scores("pinball loss", values, rows=values.numel()))


class QuantileCalibrationError(UncertaintyMetric):
    """Mean gap between a level and the share of targets below that quantile; smaller is better.

    In [0, 1). Exact, one number per level.

    Args:
        levels: each in (0, 1); every whole percent by default.
        **kwargs: of torchmetrics' ``Metric``.

    Raises:
        RecipeError: a level is not in (0, 1), or there are none.

    Source:
        Kuleshov, Fenner, Ermon 2018, arXiv:1807.00263, section 3.5, with absolute distances.

    Example:
        >>> import torch
        >>> metric = QuantileCalibrationError(levels=(0.25, 0.5, 0.75))
        >>> metric.update((torch.zeros(4), torch.ones(4)), torch.tensor([-1.0, -0.1, 0.1, 1.0]))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _concern = "quantiles"

    def __init__(self, levels: Sequence[float] = PERCENTS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels = _checked_levels(levels)
        self._add_sum("below", len(self.levels))
        self._add_sum("rows")

    def update(self, distribution: Distribution, target: Tensor) -> None:
        """Add rows.

        Args:
            distribution: a Prediction; or ``(mean, variance)``, with one axis more than the target,
                samples first, for a mixture. Of a Prediction that kept its samples the mixture is
                judged, of another the normal distribution.
            target: ``(N, ...)``, in target units.

        Raises:
            DataError: shapes differ, NaN, or a variance is negative or missing.
        """
        below = probability_below(distribution, target)
        below = check_scores("probability below", below, rows=below.numel())
        self._increase("below", level_counts(below, self.levels))
        self._increase("rows", below.numel())

    def _value(self) -> Tensor:
        rows = self._sum("rows")
        if not bool(rows > 0):
            raise DataError("at least one row is needed, got none; call update first.")
        return quantile_error_of(self._sum("below"), rows, self.levels).float()


class Sharpness(MeanScore):
    """Root of the mean predicted variance, in target units; smaller is better if calibrated.

    Args:
        **kwargs: of torchmetrics' ``Metric``.

    Source:
        Gneiting, Balabdaoui, Raftery 2007, "Probabilistic forecasts, calibration and sharpness".

    Example:
        >>> import torch
        >>> metric = Sharpness()
        >>> metric.update(torch.tensor([1.0, 7.0]))
        >>> metric.compute()
        tensor(2.)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    _concern = "variance"

    def update(self, distribution: Distribution | Tensor, target: Tensor | None = None) -> None:
        """Add rows.

        Args:
            distribution: a Prediction, a pair ``(mean, variance)``, or variances ``(N, ...)``.
            target: not looked at; here so that it can stand in a ``MetricCollection``.

        Raises:
            DataError: a variance is NaN, negative or missing.
        """
        whole = distribution if isinstance(distribution, Tensor) else moments_of(distribution)[1]
        variance = check_scores("variance", at_least_single(whole), rows=whole.numel())
        self._add(check_variance(variance))

    def _value(self) -> Tensor:
        return self._mean().sqrt().float()


def _ends(interval: Interval) -> tuple[Tensor, Tensor]:
    if not isinstance(interval, Prediction):
        if isinstance(interval, Tensor) or len(interval) != 2:
            raise DataError(
                "intervals must be a Prediction or a pair (lower, upper), got "
                f"{type(interval).__name__}; pass the two ends of each row."
            )
        lower, upper = interval
        return lower, upper
    if interval.lower is None or interval.upper is None:
        raise DataError(
            "intervals are needed, got a Prediction without; fill lower and upper by a conformal "
            "calibrator, or pass (lower, upper)."
        )
    return interval.lower, interval.upper


def _checked_levels(levels: Sequence[float]) -> tuple[float, ...]:
    if not len(levels):
        raise RecipeError(f"levels must be numbers in (0, 1), got {levels!r}; (0.05, 0.95) is one.")
    for level in levels:
        check_level("levels", level)
    return tuple(float(level) for level in levels)
