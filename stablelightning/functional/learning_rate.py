"""What a sweep over learning rates says: a smoothed curve, where it falls, and where it breaks.

A sweep takes one step at each of many rates, evenly spaced in the logarithm, and reads the loss
before each step. Everything here works on such a curve, in float64, and none of it trusts a loss
that is not finite.
"""

import math
from bisect import bisect_left
from itertools import pairwise

import torch
from torch import Tensor

from stablelightning.errors import DataError, RecipeError

#: Share of the past in the smoothed loss: it looks about ten steps back. In a sweep of a hundred
#: steps more of it moves what it sees to larger rates, by the number of steps that it looks back.
SMOOTHING = 0.9

#: A rise is divergence from so many standard deviations of one batch's loss on. The smoothed loss
#: has about a quarter of that spread, so that chance alone does not get there.
_NOISE_SPREADS = 4.0

#: Two ways to take the mean of equal numbers differ by less than this share of it.
_ROUNDING = 1e-6

#: A valley begins where this share of its fall is behind. Before the slope lies a plain of several
#: decades that falls a little by chance; how long it is depends on where the sweep began.
_PLAIN = 0.2

#: How far into the valley the suggestion lies.
_INTO_THE_VALLEY = 2 / 3


def log_spaced_rates(lowest: float, highest: float, *, steps: int) -> Tensor:
    """Learning rates from ``lowest`` to ``highest``, each the same factor above the one before.

    Args:
        lowest: first rate, > 0.
        highest: last rate, > ``lowest``.
        steps: number of rates, >= 2.

    Returns:
        ``(steps,)`` in float64.

    Raises:
        RecipeError: a setting is out of its range.

    Example:
        >>> log_spaced_rates(0.001, 10.0, steps=5)
        tensor([1.0000e-03, 1.0000e-02, 1.0000e-01, 1.0000e+00, 1.0000e+01],
               dtype=torch.float64)
    """
    if not 0 < lowest < highest < math.inf:
        raise RecipeError(
            "rates must rise from lowest > 0 to a finite highest, got "
            f"lowest={lowest!r} and highest={highest!r}."
        )
    if steps < 2:
        raise RecipeError(f"a sweep must have at least 2 steps, got {steps!r}.")
    return torch.logspace(math.log10(lowest), math.log10(highest), steps, dtype=torch.float64)


def smoothed_losses(losses: Tensor, *, smoothing: float = SMOOTHING) -> Tensor:
    """Exponential moving average, corrected for its beginning at zero.

    Of a constant it is that constant from the first step on. A loss that is not finite is left out,
    as if its step had not been: one NaN would otherwise stay in the average for ever.

    Args:
        losses: ``(n,)``.
        smoothing: share of the past, in [0, 1).

    Returns:
        ``(n,)`` in float64; NaN before the first finite loss.

    Raises:
        RecipeError: ``smoothing`` is out of its range.

    Source:
        Kingma, Ba 2014, arXiv:1412.6980, section 3 (the correction).

    Example:
        >>> smoothed_losses(torch.tensor([2.0, math.nan, 2.0, 2.0])).tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    if not 0 <= smoothing < 1:
        raise RecipeError(f"smoothing must be in [0, 1), got {smoothing!r}.")
    average, weight, means = 0.0, 0.0, []
    for loss in losses.tolist():
        if math.isfinite(loss):
            # The same weights on the losses and on ones: their quotient is a weighted mean.
            average = smoothing * average + (1 - smoothing) * loss
            weight = smoothing * weight + (1 - smoothing)
        means.append(average / weight if weight else math.nan)
    return torch.tensor(means, dtype=torch.float64)


def divergence(losses: Tensor, untrained: Tensor, *, smoothing: float = SMOOTHING) -> int | None:
    """The first step at which a run has diverged.

    That is where the loss is not finite, or where the smoothed loss has risen above that of the
    untrained model by as much as it had fallen below it before, and by no less than four standard
    deviations of one batch's loss. Nothing here depends on the loss's unit, nor on its zero: a
    log-likelihood may be negative.

    Args:
        losses: ``(n,)``, one each step.
        untrained: ``(m,)`` losses of several batches before anything is learned, such as the first
            ones of a sweep; they tell level and noise. Those that are not finite are left out.
        smoothing: share of the past in the smoothed loss, in [0, 1).

    Returns:
        Its index; ``None`` for a run that has not diverged.

    Example:
        >>> untrained = torch.tensor([2.0, 2.1, 1.9])
        >>> divergence(torch.tensor([2.0, 1.5, 1.0, 1.5, 9.0]), untrained, smoothing=0.0)
        4
        >>> divergence(torch.tensor([2.0, 1.5, math.inf]), untrained)
        2
        >>> divergence(torch.tensor([2.0, 1.5, 1.0]), untrained) is None
        True
    """
    finite = torch.isfinite(losses)
    broken = None if bool(finite.all()) else int((~finite).int().argmax())
    smooth = smoothed_losses(losses[:broken], smoothing=smoothing)
    known = untrained[torch.isfinite(untrained)].double()
    if not len(smooth) or not len(known):
        return broken
    level = known.mean()
    fallen = level - torch.cummin(smooth, 0).values
    least = max(_NOISE_SPREADS * float(known.std(correction=0)), _ROUNDING * abs(float(level)))
    rise = torch.clamp(fallen, min=least)
    over = smooth > level + rise
    return int(over.int().argmax()) if bool(over.any()) else broken


def slope_against_log_rate(rates: Tensor, losses: Tensor) -> Tensor:
    """By how much the loss changes for each factor of ten of the rate.

    Against the rate itself, the slope of the same curve would be the larger the smaller the rate
    is, and the steepest place one of the first ones, whatever the curve does.

    Args:
        rates: ``(n,)``, > 0 and rising.
        losses: ``(n,)``, smoothed.

    Returns:
        ``(n,)`` in float64, in units of the loss for each decade.

    Raises:
        DataError: there are fewer than two rates, or they do not rise.

    Example:
        >>> slope_against_log_rate(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([3.0, 2.0, 1.0]))
        tensor([-1., -1., -1.], dtype=torch.float64)
    """
    places = torch.log10(rates.double())
    if len(places) < 2 or len(places) != len(losses) or not bool((places.diff() > 0).all()):
        raise DataError(
            "a slope needs at least two rates that rise, and as many losses, got "
            f"{len(rates)} rates and {len(losses)} losses."
        )
    return torch.gradient(losses.double(), spacing=(places,))[0]


def longest_valley(losses: Tensor) -> tuple[int, int] | None:
    """Where a curve falls for longest, small rises on the way forgiven.

    That is the longest sequence of steps, not necessarily next to each other, of which each is
    lower than the one before; it begins where a fifth of the sequence's fall is behind, so
    that the plain before the slope is not counted in.

    Args:
        losses: ``(n,)``, smoothed; what is not finite belongs to no valley.

    Returns:
        Index of its first and of its last step, ``None`` where nothing falls.

    Source:
        Schensted 1961, Longest increasing and decreasing subsequences (sorted piles find it in
        n log n).

    Example:
        >>> longest_valley(torch.tensor([5.0, 5.0, 4.0, 4.2, 3.0, 2.0, 6.0, 5.0]))
        (1, 5)
    """
    steps = _longest_fall(losses.double().tolist())
    if len(steps) < 2:
        return None
    values = losses.double()
    first, last = values[steps[0]], values[steps[-1]]
    begin = first - _PLAIN * (first - last)
    beyond = [step for step, after in pairwise(steps) if values[after] <= begin]
    return beyond[0], steps[-1]


def _longest_fall(values: list[float]) -> list[int]:
    """Indices of the longest strictly falling subsequence; of equals the last one in the curve."""
    ends: list[float] = []  # minus the highest value at which a sequence of each length can end
    places: list[int] = []
    before: dict[int, int | None] = {}
    for place, value in enumerate(values):
        if not math.isfinite(value):
            continue
        length = bisect_left(ends, -value)
        before[place] = places[length - 1] if length else None
        if length == len(ends):
            ends.append(-value)
            places.append(place)
        else:
            ends[length], places[length] = -value, place
    found: list[int] = []
    place_or_none = places[-1] if places else None
    while place_or_none is not None:
        found.append(place_or_none)
        place_or_none = before[place_or_none]
    return found[::-1]


def valley_rate(rates: Tensor, losses: Tensor) -> float | None:
    """The learning rate two thirds into the longest valley, counted in factors.

    Args:
        rates: ``(n,)``, > 0 and rising.
        losses: ``(n,)``, smoothed, up to where the sweep diverged.

    Returns:
        A rate between the first and the last; ``None`` where nothing falls.

    Source:
        Smith 2015, arXiv:1506.01186, section 3.3 (the sweep); the longest valley follows an idea of
        fastai's.

    Example:
        >>> rates = log_spaced_rates(1e-6, 1.0, steps=7)
        >>> f"{valley_rate(rates, torch.tensor([3.0, 3.0, 2.0, 1.0, 0.0, 4.0, 9.0])):.1e}"
        '1.0e-03'
    """
    valley = longest_valley(losses)
    if valley is None:
        return None
    low, high = (math.log10(float(rates[place])) for place in valley)
    return float(10 ** (low + _INTO_THE_VALLEY * (high - low)))
