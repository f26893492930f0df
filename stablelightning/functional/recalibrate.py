"""Recalibration of regressions: how wide the errors are, and how they are spread."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.scores import at_least_single

#: Levels at which the spread of the errors is kept, at most.
_KNOTS = 201


def standardized_errors(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Errors in units of the predicted standard deviation, in double.

    Args:
        mean: ``(N, ...)``, in target units.
        variance: the same shape, > 0.
        target: the same shape.

    Raises:
        DataError: other shapes, a variance that is not positive, or values that are not finite.

    Example:
        >>> standardized_errors(torch.zeros(1), torch.tensor([4.0]), torch.tensor([1.0]))
        tensor([0.5000], dtype=torch.float64)
    """
    if not mean.shape == variance.shape == target.shape or len(target) == 0:
        raise DataError(
            "mean, variance and target must have one shape and one row or more, got "
            f"{tuple(mean.shape)}, {tuple(variance.shape)} and {tuple(target.shape)}."
        )
    if not bool((variance > 0).all()):
        raise DataError(
            f"variances must be > 0, got {float(variance.min()):.3g}; give the model a variance "
            "head, or sample it."
        )
    errors = (target.double() - mean.double()) / variance.double().sqrt()
    if not bool(torch.isfinite(errors).all()):
        raise DataError("targets and predictions must be finite, got NaN or infinity; drop rows.")
    return errors


def variance_factor(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """The factor of the variance at which the targets are the most likely: in closed form.

    Args:
        mean: ``(N, ...)``, in target units.
        variance: the same shape, > 0.
        target: the same shape.

    Returns:
        The mean over the rows of the squared errors in predicted units, ``(...)``, in double.

    Raises:
        DataError: as for :func:`standardized_errors`, or errors that are all 0.

    Source:
        The root of the derivative of the Gaussian likelihood; Laves et al. 2020, arXiv:2104.12376
        (sigma scaling).

    Example:
        >>> mean, variance = torch.zeros(2), torch.ones(2)
        >>> variance_factor(mean, variance, torch.tensor([3.0, -1.0]))
        tensor(5., dtype=torch.float64)
    """
    factor = standardized_errors(mean, variance, target).square().mean(0)
    if not bool((factor > 0).all()):
        raise DataError(
            "errors must not all be 0, got a variance factor of 0; calibrate on rows that the "
            "model was not trained on."
        )
    return factor


def error_quantiles(errors: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution of errors as quantiles at up to 201 levels.

    The i-th of n ordered errors stands for the level ``i / (n + 1)``.

    Args:
        errors: ``(N,)`` in predicted standard deviations.

    Returns:
        Levels, ascending in (0, 1), and the quantiles at them, in double.

    Source:
        Kuleshov et al. 2018, arXiv:1807.00263: their map from predicted to observed frequency, of
        a Gaussian prediction, says the same as the quantiles of its standardised errors.

    Example:
        >>> levels, quantiles = error_quantiles(torch.tensor([2.0, -1.0, 0.0]))
        >>> levels.tolist(), quantiles.tolist()
        ([0.25, 0.5, 0.75], [-1.0, 0.0, 2.0])
    """
    ordered = errors.double().sort().values
    count = len(ordered)
    levels = torch.arange(1, count + 1, dtype=torch.float64, device=errors.device) / (count + 1)
    if count <= _KNOTS:
        return levels, ordered
    # As dense in the tails as a Gaussian's quantiles are wide there.
    scores = torch.special.ndtri(levels)
    wanted = torch.linspace(float(scores[0]), float(scores[-1]), _KNOTS).to(scores)
    return torch.special.ndtr(wanted), interpolated(wanted, scores, ordered)


def quantile_of_errors(level: Tensor, levels: Tensor, quantiles: Tensor) -> Tensor:
    """The quantile of errors at any level; beyond the outermost ones it goes on as a Gaussian's.

    Args:
        level: any shape, in (0, 1).
        levels: of :func:`error_quantiles`.
        quantiles: at these.

    Returns:
        The shape of ``level``, in double; it grows with the level.

    Example:
        >>> levels, quantiles = torch.tensor([0.25, 0.75]), torch.tensor([-1.0, 1.0])
        >>> quantile_of_errors(torch.tensor([0.5]), levels, quantiles)
        tensor([0.], dtype=torch.float64)
    """
    # Against a Gaussian's quantiles those of Gaussian errors are a straight line.
    score, knots = torch.special.ndtri(level.double()), torch.special.ndtri(levels.double())
    edges = score.clamp(knots[0], knots[-1])
    inside = interpolated(edges, knots, quantiles.double())
    # The tail goes on with the slope between the outermost knots: it fits the errors' scale.
    beyond: Tensor = _width(knots, quantiles.double()) * (score - edges)
    return inside + beyond


def level_of_errors(errors: Tensor, levels: Tensor, quantiles: Tensor) -> Tensor:
    """The level at which each error is the quantile: the way back from :func:`quantile_of_errors`.

    Over many rows it is uniform on [0, 1] if the quantiles are right.

    Args:
        errors: any shape, in predicted standard deviations.
        levels: of :func:`error_quantiles`.
        quantiles: at these; not all of them equal.

    Returns:
        The shape of ``errors``, in [0, 1], in double.

    Example:
        >>> levels, quantiles = torch.tensor([0.25, 0.75]), torch.tensor([-1.0, 1.0])
        >>> level_of_errors(torch.tensor([-1.0, 0.0]), levels, quantiles)
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    errors, quantiles = errors.double(), quantiles.double().to(errors.device)
    knots = torch.special.ndtri(levels.double().to(errors.device))
    edges = errors.clamp(quantiles[0], quantiles[-1])
    score = interpolated(edges, quantiles, knots) + (errors - edges) / _width(knots, quantiles)
    level: Tensor = torch.special.ndtr(score)
    return level


def error_moments(levels: Tensor, quantiles: Tensor) -> tuple[float, float]:
    """Mean and variance of the errors that the quantiles describe, tails included.

    Example:
        >>> levels = torch.linspace(0.01, 0.99, 99)
        >>> mean, variance = error_moments(levels, torch.special.ndtri(levels.double()))
        >>> abs(mean) < 1e-6, abs(variance - 1) < 0.01
        (True, True)
    """
    # The midpoints of equal shares of the probability.
    shares = (torch.arange(4000, dtype=torch.float64, device=levels.device) + 0.5) / 4000
    values = quantile_of_errors(shares, levels, quantiles)
    return float(values.mean()), float(values.var(correction=0))


def central_interval(
    mean: Tensor,
    std: Tensor,
    level: float,
    *,
    quantiles: Sequence[tuple[float, float]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The interval around a prediction that should hold ``level`` of the targets.

    Args:
        mean: any shape, in target units.
        std: the same shape.
        level: in (0, 1).
        quantiles: levels and the quantiles of the errors at them, in standard deviations; ``None``
            for Gaussian errors.

    Returns:
        The ends, where a share of ``(1 - level) / 2`` lies beyond each.

    Raises:
        RecipeError: ``level`` is not in (0, 1).

    Example:
        >>> central_interval(torch.zeros(1), torch.ones(1), 0.9)
        (tensor([-1.6449]), tensor([1.6449]))
    """
    if not 0 < level < 1:
        raise RecipeError(f"level must be in (0, 1), got {level}; 0.9 is the usual choice.")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    if quantiles is None:
        lower, upper = torch.special.ndtri(ends).tolist()
    else:
        levels, at_levels = torch.tensor(quantiles, dtype=torch.float64).T
        lower, upper = quantile_of_errors(ends, levels, at_levels).tolist()
    return mean + lower * std, mean + upper * std


def interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation between knots, constant beyond the outermost.

    Args:
        at: any shape.
        x: ``(K,)`` ascending.
        y: ``(K,)``.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 10.0])
        >>> interpolated(torch.tensor([0.25, 2.0]), x, y)
        tensor([ 2.5000, 10.0000])
    """
    at = at_least_single(at)
    x, y = x.to(at).contiguous(), y.to(at)
    if len(x) == 1:
        return y.expand(at.shape).clone()
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    run = x[right] - x[left]
    share = ((at - x[left]) / run.where(run > 0, torch.ones_like(run))).clamp(0, 1)
    return y[left] + share * (y[right] - y[left])


def _width(knots: Tensor, quantiles: Tensor) -> Tensor:
    """How wide the errors are in Gaussian ones: the slope between the outermost quantiles."""
    if len(knots) == 1:
        return torch.ones_like(knots[0])
    slope: Tensor = (quantiles[-1] - quantiles[0]) / (knots[-1] - knots[0])
    return slope
