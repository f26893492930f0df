"""Conformal scores, and the threshold that makes the sets of them hold.

A score says how badly a target fits a prediction. The threshold is the score of a certain rank
among rows that were kept for it; the set of a new row is every target whose score does not exceed
it. If the new row is exchangeable with those, the set holds its target with a probability of at
least ``1 - alpha``, whatever the model.
"""

import math
from fractions import Fraction
from numbers import Rational, Real
from typing import Any

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError
from stablelightning.functional.row_keys import mixed_bits, shifted_right
from stablelightning.functional.scores import at_least_single
from stablelightning.functional.shapes import check_same_shape
from stablelightning.functional.uncertainty import is_probabilities

#: 0.1 as a float is a little more than 0.1, and a rank must not hang on that: shares are read as
#: the nearest fraction of at most this denominator.
_FINEST_SHARE = 10**6

#: The golden ratio in 64 bits: multiples of it are spread evenly.
_GOLDEN = 0x9E3779B97F4A7C15
_WORDS = 1 << 64
#: float32 holds this many bits of a fraction exactly.
_BITS = 24


def conformal_rank(rows: int, alpha: float) -> int:
    """Which of the sorted scores is the threshold: ``ceil((rows + 1) * (1 - alpha))``.

    The ``+ 1`` is the new row, which may fall into each gap between the scores alike.

    Args:
        rows: number of calibration rows, at least ``1 / alpha``.
        alpha: share of the sets that may miss their target, in (0, 1).

    Returns:
        The rank, counted from 1; at most ``rows``.

    Raises:
        RecipeError: ``alpha`` is not in (0, 1).
        DataError: fewer rows than ``1 / alpha``: no finite threshold keeps the promise, or none but
            the very worst score.

    Source:
        Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world"; Lei et al. 2018,
        arXiv:1604.04173, section 2.2.

    Example:
        >>> conformal_rank(99, 0.1), conformal_rank(100, 0.1)
        (90, 91)
    """
    share = _share(alpha)
    if rows * share < 1:
        raise DataError(
            f"alpha={alpha:g} needs {math.ceil(1 / share)} calibration rows or more (1 / alpha), "
            f"got {rows}; keep more rows for it, or take a larger alpha."
        )
    return max(1, rows + 1 - math.floor((rows + 1) * share))


def conformal_quantile(scores: Tensor, alpha: float) -> Tensor:
    """The threshold: the score of rank ``ceil((n + 1) * (1 - alpha))`` among n calibration rows.

    It is slightly above the plain quantile; that is what makes the promise hold for finite n.

    Args:
        scores: ``(n, ...)``, the larger, the worse the target fits; each column on its own.
        alpha: share of the sets that may miss their target, in (0, 1).

    Returns:
        ``(...)``, in the unit of the scores.

    Raises:
        RecipeError: ``alpha`` is not in (0, 1).
        DataError: fewer rows than ``1 / alpha``, or NaN among the scores.

    Source:
        Lei et al. 2018, arXiv:1604.04173, algorithm 2.

    Example:
        >>> conformal_quantile(torch.arange(1.0, 10.0), alpha=0.2)
        tensor(8.)
    """
    rank = conformal_rank(len(scores), alpha)
    missing = int(scores.isnan().sum())
    if missing:
        raise DataError(
            f"conformal scores must be numbers, got {missing} NaN in {scores.numel()}; "
            "look for them in the predictions and in the targets."
        )
    return scores.sort(dim=0).values[rank - 1]


def least_ambiguous_scores(probabilities: Tensor) -> Tensor:
    """One minus the probability of each class (LAC): the smallest sets on average.

    Args:
        probabilities: ``(N, C)``.

    Returns:
        ``(N, C)``, in [0, 1]: the score that each class would have as the target.

    Raises:
        DataError: rows are no probabilities.

    Source:
        Sadinle, Lei, Wasserman 2019, arXiv:1609.00451.

    Example:
        >>> least_ambiguous_scores(torch.tensor([[0.75, 0.25]]))
        tensor([[0.2500, 0.7500]])
    """
    return 1 - _probabilities(probabilities)


def adaptive_scores(probabilities: Tensor, uniform: Tensor | None = None) -> Tensor:
    """The probability of all classes that are more probable, plus a share of the class's own (APS).

    The share is drawn, so that a set is large where the model is unsure, and yet not larger than
    it must be on average.

    Args:
        probabilities: ``(N, C)``.
        uniform: ``(N,)`` in [0, 1], see :func:`uniform_of_rows`; ``None`` takes the whole of it.

    Returns:
        ``(N, C)``, in [0, 1].

    Raises:
        DataError: rows are no probabilities.

    Source:
        Romano, Sesia, Candès 2020, arXiv:2006.02544, equation 5.

    Example:
        >>> adaptive_scores(torch.tensor([[0.25, 0.75]]), uniform=torch.tensor([0.5]))
        tensor([[0.8750, 0.3750]])
    """
    ordered, order = _probabilities(probabilities).sort(dim=1, descending=True, stable=True)
    share = 1.0 if uniform is None else uniform.to(ordered).unsqueeze(1)
    before = ordered.cumsum(1) - ordered
    return torch.empty_like(ordered).scatter_(1, order, before + share * ordered)


def regularized_adaptive_scores(
    probabilities: Tensor,
    uniform: Tensor | None = None,
    *,
    penalty: float = 0.01,
    free: int = 5,
) -> Tensor:
    """APS with a price on every class after the first few (RAPS): no set becomes very large.

    Args:
        probabilities: ``(N, C)``.
        uniform: as in :func:`adaptive_scores`.
        penalty: added for each rank after the free ones, >= 0; in units of probability.
        free: so many classes of a row cost nothing, >= 0.

    Returns:
        ``(N, C)``, >= 0.

    Raises:
        RecipeError: ``penalty`` or ``free`` is negative.
        DataError: rows are no probabilities.

    Source:
        Angelopoulos et al. 2021, arXiv:2009.14193, equation 4.

    Example:
        >>> probabilities = torch.tensor([[0.5, 0.25, 0.25]])
        >>> regularized_adaptive_scores(probabilities, penalty=0.125, free=1)
        tensor([[0.5000, 0.8750, 1.2500]])
    """
    check_penalty(penalty, free)
    scores = adaptive_scores(probabilities, uniform)
    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    order = at_least_single(probabilities).argsort(dim=1, descending=True, stable=True)
    price = penalty * (ranks - free).clamp(min=0).to(scores.dtype)
    return scores + torch.empty_like(scores).scatter_(1, order, price.expand_as(scores))


def check_penalty(penalty: float, free: int) -> None:
    """Refuse settings of :func:`regularized_adaptive_scores` that are out of their range.

    Raises:
        RecipeError: ``penalty`` or ``free`` is negative.

    Example:
        >>> check_penalty(0.01, 5)
    """
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise RecipeError(
            f"penalty must be a finite number >= 0, got {penalty}; 0 prices no class (APS)."
        )
    if isinstance(free, bool) or not isinstance(free, int) or free < 0:
        raise RecipeError(f"free must be a whole number >= 0, got {free!r}; 5 is usual.")


def uniform_of_rows(rows: Tensor, seed: int = 0) -> Tensor:
    """A number in [0, 1) for each row that depends on the row alone, not on its batch.

    Args:
        rows: ``(N,)`` int64 that name the rows, such as a hash of their inputs.
        seed: another one gives other numbers.

    Returns:
        ``(N,)`` float32.

    Source:
        Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (the mixing
        function of splitmix64).

    Example:
        >>> first = uniform_of_rows(torch.tensor([7, 8, 9]))
        >>> bool((uniform_of_rows(torch.tensor([9])) == first[2]).all())
        True
    """
    start = (seed + 1) * _GOLDEN % _WORDS
    bits = rows.long() + (start - _WORDS if start >= _WORDS // 2 else start)
    return shifted_right(mixed_bits(bits), 64 - _BITS).float() / (1 << _BITS)


def scaled_residual_scores(mean: Tensor, scale: Tensor, target: Tensor) -> Tensor:
    """Distance between target and mean, in units of each row's own scale.

    Args:
        mean: ``(N, ...)``, in target units.
        scale: the same shape, > 0, in target units: the predicted standard deviation, say; ones
            give intervals of constant width.
        target: the same shape.

    Returns:
        The same shape, >= 0: how many scales the target is away.

    Raises:
        DataError: the shapes differ, or a scale is not positive.

    Source:
        Papadopoulos, Gammerman, Vovk 2008, "Normalized nonconformity measures for regression
        conformal prediction"; Lei et al. 2018, arXiv:1604.04173, section 5.2.

    Example:
        >>> mean, scale = torch.zeros(2), torch.tensor([1.0, 2.0])
        >>> scaled_residual_scores(mean, scale, torch.tensor([3.0, -3.0]))
        tensor([3.0000, 1.5000])
    """
    check_same_shape(mean=mean, scale=scale, target=target)
    if not bool((scale > 0).all()):
        raise DataError(
            f"scale must be > 0 in every row, got {scale.min().item():g}; "
            "take ones for intervals of constant width."
        )
    return (at_least_single(target) - at_least_single(mean)).abs() / at_least_single(scale)


def quantile_scores(lower: Tensor, upper: Tensor, target: Tensor) -> Tensor:
    """How far the target lies outside an interval; negative inside, the more the deeper (CQR).

    Args:
        lower: ``(N, ...)`` predicted lower quantile, in target units.
        upper: the same shape, the upper one.
        target: the same shape.

    Returns:
        The same shape, in target units.

    Raises:
        DataError: the shapes differ.

    Source:
        Romano, Patterson, Candès 2019, arXiv:1905.03222, equation 6.

    Example:
        >>> lower, upper = torch.zeros(2), torch.ones(2)
        >>> quantile_scores(lower, upper, torch.tensor([0.25, 3.0]))
        tensor([-0.2500,  2.0000])
    """
    check_same_shape(lower=lower, upper=upper, target=target)
    target = at_least_single(target)
    return torch.maximum(at_least_single(lower) - target, target - at_least_single(upper))


def _share(alpha: Any) -> Fraction:
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < float(alpha) < 1:
        raise RecipeError(
            f"alpha must be in (0, 1), got {alpha!r}; 0.1 lets one set in ten miss its target."
        )
    exact = Fraction(alpha) if isinstance(alpha, Rational) else Fraction(float(alpha))
    return exact.limit_denominator(_FINEST_SHARE) or exact


def _probabilities(values: Tensor) -> Tensor:
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(
            "conformal sets need one row of probabilities for two or more classes (N, C), got "
            f"{tuple(values.shape)}; flatten pixels and tokens to rows."
        )
    if not is_probabilities(values):
        found = at_least_single(values)
        raise DataError(
            "probabilities must be >= 0 and sum to one in every row, got a smallest of "
            f"{found.min().item():.3g} and sums from {found.sum(1).min().item():.3g} to "
            f"{found.sum(1).max().item():.3g}; take the softmax of logits first."
        )
    return at_least_single(values)
