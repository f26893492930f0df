"""Intervals and quantiles of a regression: whether they hold what they promise, and how wide."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.checked import check_scores
from stablelightning.functional.scores import SMALLEST_VARIANCE, at_least_single
from stablelightning.functional.shapes import check_same_shape

#: Quantiles at which :func:`quantile_calibration_error` looks, unless told: every whole percent.
PERCENTS = tuple(percent / 100 for percent in range(1, 100))


def interval_coverage(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    """Whether each target lies in its interval, ends included.

    Args:
        lower: ``(N, ...)``, in target units.
        upper: the same shape, nowhere below ``lower``.
        target: the same shape.

    Returns:
        The same shape, 1 inside and 0 outside; its mean is to be held against the level.

    Raises:
        DataError: shapes differ, NaN, or an upper end below its lower one.

    Example:
        >>> interval_coverage(torch.zeros(2), torch.ones(2), torch.tensor([0.5, 2.0]))
        tensor([1., 0.])
    """
    lower, upper, target = _interval(lower, upper, target)
    return ((target >= lower) & (target <= upper)).to(lower.dtype)


def interval_width(lower: Tensor, upper: Tensor) -> Tensor:
    """Width of each interval.

    Args:
        lower: ``(N, ...)``, in target units.
        upper: the same shape, nowhere below ``lower``.

    Returns:
        The same shape, >= 0, in target units.

    Raises:
        DataError: shapes differ, NaN, or an upper end below its lower one.

    Example:
        >>> interval_width(torch.tensor([0.0]), torch.tensor([2.5]))
        tensor([2.5000])
    """
    lower, upper, _ = _interval(lower, upper, lower)
    return upper - lower


def interval_score(lower: Tensor, upper: Tensor, target: Tensor, *, level: float = 0.9) -> Tensor:
    """Width of each interval, plus a fine of 2 / (1 - level) times how far the target is outside.

    Proper: it is least in expectation for the true quantiles, so that neither a wide interval nor a
    narrow one wins by itself.

    Args:
        lower: ``(N, ...)``, in target units, meant as the quantile at (1 - level) / 2.
        upper: the same shape, meant as the quantile at (1 + level) / 2.
        target: the same shape.
        level: share of targets that the intervals promise to hold, in (0, 1).

    Returns:
        The same shape, >= 0, in target units; smaller is better.

    Raises:
        RecipeError: ``level`` is not in (0, 1).
        DataError: shapes differ, NaN, or an upper end below its lower one.

    Source:
        Winkler 1972; Gneiting, Raftery 2007, "Strictly proper scoring rules, prediction, and
        estimation", equation 43.

    Example:
        >>> lower, upper = torch.zeros(2), torch.ones(2)
        >>> interval_score(lower, upper, torch.tensor([0.5, 2.0]), level=0.9)
        tensor([ 1., 21.])
    """
    check_level("level", level)
    lower, upper, target = _interval(lower, upper, target)
    outside = (lower - target).clamp(min=0) + (target - upper).clamp(min=0)
    return upper - lower + 2 / (1 - level) * outside


def pinball_loss(quantiles: Tensor, target: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
    """The loss whose least expectation is at the quantile: an asymmetric absolute distance.

    Differentiable almost everywhere, so it also trains a head that predicts quantiles.

    Args:
        quantiles: ``(N, ..., Q)``, in target units, one prediction per level.
        target: ``(N, ...)``.
        levels: ``(Q,)``, each in (0, 1).

    Returns:
        ``(N, ..., Q)``, >= 0, in target units.

    Raises:
        RecipeError: a level is not in (0, 1).
        DataError: shapes do not fit.

    Source:
        Koenker, Bassett 1978, "Regression quantiles".

    Example:
        >>> pinball_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]), levels=(0.1, 0.9))
        tensor([[0.1000, 0.1000]])
    """
    quantiles = at_least_single(quantiles)
    level = torch.as_tensor(levels, dtype=quantiles.dtype, device=quantiles.device)
    if not isinstance(levels, Tensor):
        for each in levels:
            check_level("levels", each)
    if quantiles.shape != (*target.shape, len(level)):
        raise DataError(
            f"quantiles must have the target's shape and one more axis of {len(level)} levels, got "
            f"{tuple(quantiles.shape)} for a target of {tuple(target.shape)}; reshape one of them."
        )
    below = at_least_single(target).unsqueeze(-1) - quantiles
    return torch.maximum(level * below, (level - 1) * below)


def gaussian_probability_below(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Probability that a normal distribution gives to values below the target.

    Over many rows it is uniform on [0, 1] if the distributions are right.

    Args:
        mean: ``(N, ...)``, in target units.
        variance: the same shape, in squared target units; taken to be at least 1e-6.
        target: the same shape.

    Returns:
        The same shape, in [0, 1].

    Raises:
        DataError: shapes differ.

    Source:
        Dawid 1984, "Statistical theory: the prequential approach" (probability integral transform).

    Example:
        >>> gaussian_probability_below(torch.zeros(1), torch.ones(1), torch.tensor([1.6449]))
        tensor([0.9500])
    """
    check_same_shape(mean=mean, variance=variance, target=target)
    return _below(mean, variance, target)


def mixture_probability_below(means: Tensor, variances: Tensor, target: Tensor) -> Tensor:
    """Probability below the target under the equal mixture of the samples' normal distributions.

    Args:
        means: ``(T, N, ...)``, samples first, in target units.
        variances: the same shape or broadcast to it, in squared target units.
        target: ``(N, ...)``.

    Returns:
        ``(N, ...)``, in [0, 1].

    Raises:
        DataError: the shapes of a sample and of the target differ.

    Source:
        As :func:`gaussian_probability_below`, averaged over the samples.

    Example:
        >>> means = torch.tensor([[-1.0], [1.0]])
        >>> mixture_probability_below(means, torch.ones(2, 1), torch.tensor([0.0]))
        tensor([0.5000])
    """
    check_same_shape(**{"a sample of the means": means[0], "target": target})
    return _below(means, variances.expand_as(means), target).mean(0)


def quantile_calibration_error(
    below: Tensor, *, levels: Sequence[float] | Tensor = PERCENTS
) -> Tensor:
    """Mean over the levels of how far the share of targets below a quantile is from its level.

    Args:
        below: ``(N, ...)``, the probability that each row's distribution gives to values below its
            target, from :func:`gaussian_probability_below` or :func:`mixture_probability_below`.
        levels: each in (0, 1).

    Returns:
        A scalar in [0, 1).

    Raises:
        RecipeError: a level is not in (0, 1).
        DataError: NaN, or no rows.

    Source:
        Kuleshov, Fenner, Ermon 2018, arXiv:1807.00263, section 3.5, with the absolute instead of
        the squared distance, which has the unit of a calibration error of classes.

    Example:
        >>> even = torch.arange(0.005, 1, 0.01)
        >>> quantile_calibration_error(even).item() < 1e-6, quantile_calibration_error(even / 2)
        (True, tensor(0.2525))
    """
    below = check_scores("below", below)
    counts = level_counts(below, levels)
    return quantile_error_of(counts, below.numel(), levels).to(below.dtype)


def level_counts(below: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
    """How many rows lie at or below each level.

    Args:
        below: ``(N,)`` in [0, 1].
        levels: ``(Q,)``, each in (0, 1).

    Returns:
        ``(Q,)`` float64.

    Raises:
        RecipeError: a level is not in (0, 1).
    """
    if not isinstance(levels, Tensor):
        for each in levels:
            check_level("levels", each)
    level = torch.as_tensor(levels, dtype=torch.float64, device=below.device)
    ordered = below.double().sort().values
    return torch.searchsorted(ordered, level, right=True).double()


def quantile_error_of(
    counts: Tensor, rows: int | Tensor, levels: Sequence[float] | Tensor
) -> Tensor:
    """:func:`quantile_calibration_error` of :func:`level_counts`, in float64."""
    level = torch.as_tensor(levels, dtype=counts.dtype, device=counts.device)
    return (counts / rows - level).abs().mean()


def sharpness(variance: Tensor) -> Tensor:
    """Root of the mean variance: how narrow the predicted distributions are, calibrated or not.

    Args:
        variance: any shape, in squared target units, >= 0.

    Returns:
        A scalar, in target units; smaller is better *among calibrated predictions*.

    Raises:
        DataError: NaN, a negative variance, or no rows.

    Source:
        Gneiting, Balabdaoui, Raftery 2007, "Probabilistic forecasts, calibration and sharpness";
        Kuleshov, Fenner, Ermon 2018, arXiv:1807.00263, section 3.5.

    Example:
        >>> sharpness(torch.tensor([1.0, 7.0]))
        tensor(2.)
    """
    return check_variance(check_scores("variance", variance)).mean().sqrt()


def check_variance(variance: Tensor) -> Tensor:
    """Return the variances, which must not be negative.

    Raises:
        DataError: one of them is.
    """
    if variance.numel() and bool((variance < 0).any()):
        raise DataError(
            f"variance must be >= 0, got {variance.amin().item():.4g}; a head that predicts its "
            "logarithm needs .exp()."
        )
    return variance


def check_level(name: str, value: float) -> None:
    """Refuse what is no level.

    Raises:
        RecipeError: it is not in (0, 1).
    """
    if isinstance(value, bool) or not 0 < value < 1:
        raise RecipeError(f"{name} must be in (0, 1), got {value}; 0.9 is the usual choice.")


def _below(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    spread = at_least_single(variance).clamp(min=SMALLEST_VARIANCE).sqrt()
    below: Tensor = torch.special.ndtr((at_least_single(target) - at_least_single(mean)) / spread)
    return below


def _interval(lower: Tensor, upper: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_same_shape(lower=lower, upper=upper, target=target)
    lower, upper, target = (at_least_single(part) for part in (lower, upper, target))
    if lower.numel() == 0:
        return lower, upper, target
    if bool((lower.isnan() | upper.isnan() | target.isnan()).any()):
        raise DataError(
            "intervals and targets must not be NaN; look for it in the inputs, or leave those "
            "rows out."
        )
    # Compared, not subtracted: an interval from infinity to infinity is honest.
    if bool((upper < lower).any()):
        raise DataError(
            f"upper must nowhere be below lower, got {int((upper < lower).sum())} of "
            f"{lower.numel()} rows; sort the quantiles "
            "that crossed."
        )
    return lower, upper, target
