"""Learning-rate schedules: the factor of the base rate, from the share of training that is done.

Each takes ``progress``, from 0 at the first step to 1 when the last one is done, and gives a factor
>= 0. A schedule that is told so is the same curve for ten steps and for ten million.
"""

import math
from collections.abc import Sequence

from stablelightning.errors import RecipeError


def power(progress: float, *, halved_at: float, exponent: float = 1.0) -> float:
    """Fall as a power of the steps: to a half, a third, a quarter after equal stretches.

    Args:
        progress: share of training that is done, in [0, 1].
        halved_at: share after which the factor is ``2 ** -exponent``, > 0.
        exponent: > 0; 1 for a hyperbola, 0.5 for one over the square root.

    Returns:
        ``(1 + progress / halved_at) ** -exponent``.

    Source:
        Robbins, Monro 1951 (steps must add up to infinity, and their squares must not); Géron,
        Hands-On Machine Learning, chapter 11.

    Example:
        >>> [power(p, halved_at=0.25) for p in (0.0, 0.25, 0.5, 0.75)]
        [1.0, 0.5, 0.3333333333333333, 0.25]
    """
    return float((1.0 + progress / halved_at) ** -exponent)


def exponential(progress: float, *, final: float) -> float:
    """Fall by the same ratio in equal stretches, down to ``final``.

    Args:
        progress: share of training that is done, in [0, 1].
        final: factor at the end, in (0, 1].

    Returns:
        ``final ** progress``.

    Source:
        Géron, Hands-On Machine Learning, chapter 11; that torch's ``ExponentialLR`` multiplies by
        ``gamma`` at each step is the same with ``gamma = final ** (1 / steps)``.

    Example:
        >>> exponential(0.5, final=0.01)
        0.1
    """
    return float(final**progress)


def piecewise_constant(
    progress: float, *, boundaries: Sequence[float], factors: Sequence[float]
) -> float:
    """Stay on a factor until a boundary, then jump to the next.

    Args:
        progress: share of training that is done, in [0, 1].
        boundaries: increasing shares at which the factor changes.
        factors: of the stretches between, one more than there are boundaries.

    Source:
        He et al. 2015, arXiv:1512.03385, section 4.2 (a tenth at 1/2 and at 3/4 of training).

    Example:
        >>> [piecewise_constant(p, boundaries=[0.5], factors=[1, 0.1]) for p in (0.0, 0.49, 0.5)]
        [1.0, 1.0, 0.1]
    """
    return float(factors[sum(progress >= boundary for boundary in boundaries)])


def warmup_cosine(
    progress: float, *, warmup: float, start: float = 0.0, final: float = 0.0
) -> float:
    """Rise in a straight line to 1, then fall along half a cosine.

    Args:
        progress: share of training that is done, in [0, 1].
        warmup: share that it takes to rise, in [0, 1); 0 for none.
        start: factor at the very beginning, in [0, 1].
        final: factor at the end, in [0, 1].

    Source:
        Loshchilov, Hutter 2016, arXiv:1608.03983, equation 5, without restarts; Goyal et al. 2017,
        arXiv:1706.02677, section 2.2 (gradual warm-up).

    Example:
        >>> [round(warmup_cosine(p, warmup=0.2), 9) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return _line(progress / warmup, start, 1.0)
    done = (progress - warmup) / (1.0 - warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))


def warmup_stable_decay(
    progress: float, *, warmup: float, decay: float, start: float = 0.0, final: float = 0.0
) -> float:
    """Rise in a straight line to 1, stay there, and fall at the end as one minus a square root.

    The stretch in the middle does not know when training ends, so that a run can be prolonged from
    a checkpoint before its fall.

    Args:
        progress: share of training that is done, in [0, 1].
        warmup: share that it takes to rise, in [0, 1); 0 for none.
        decay: share that it takes to fall, in (0, 1]; ``warmup + decay <= 1``.
        start: factor at the very beginning, in [0, 1].
        final: factor at the end, in [0, 1].

    Source:
        Hu et al. 2024, arXiv:2404.06395, section 4; Hägele et al. 2024, arXiv:2405.18392, section 3
        (one minus the square root is the better fall).

    Example:
        >>> shares = (0.05, 0.5, 0.88, 1.0)
        >>> [round(warmup_stable_decay(p, warmup=0.1, decay=0.16), 9) for p in shares]
        [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return _line(progress / warmup, start, 1.0)
    done = (progress - (1.0 - decay)) / decay
    return 1.0 if done <= 0.0 else final + (1.0 - final) * (1.0 - math.sqrt(min(done, 1.0)))


def one_cycle(progress: float, *, peak: float, start: float, final: float) -> float:
    """Rise along half a cosine to 1, and fall along another to almost nothing.

    Args:
        progress: share of training that is done, in [0, 1].
        peak: share at which the rate is largest, in (0, 1).
        start: factor at the very beginning, in (0, 1].
        final: factor at the end, in [0, 1].

    Source:
        Smith, Topin 2017, arXiv:1708.07120; with cosines as in torch's ``OneCycleLR``.

    Example:
        >>> [round(one_cycle(p, peak=0.5, start=0.2, final=0.0), 9) for p in (0.0, 0.25, 0.5, 0.75)]
        [0.2, 0.6, 1.0, 0.5]
    """
    if progress < peak:
        return _half_cosine(progress / peak, start, 1.0)
    return _half_cosine((progress - peak) / (1.0 - peak), 1.0, final)


def one_cycle_three_phase(progress: float, *, peak: float, start: float, final: float) -> float:
    """Rise to 1, fall to where it began in the same time, and spend the rest on falling further.

    Args:
        progress: share of training that is done, in [0, 1].
        peak: share at which the rate is largest, in (0, 0.5).
        start: factor at the very beginning and after the fall, in (0, 1].
        final: factor at the end, in [0, 1].

    Source:
        Smith 2018, arXiv:1803.09820, section 4 (the cycle is a little shorter than training, and
        the rate falls by powers of ten in what is left); cosines as in torch's ``OneCycleLR``.

    Example:
        >>> shares = (0.0, 0.4, 0.8, 1.0)
        >>> [round(one_cycle_three_phase(p, peak=0.4, start=0.2, final=0.0), 9) for p in shares]
        [0.2, 1.0, 0.2, 0.0]
    """
    if progress < peak:
        return _half_cosine(progress / peak, start, 1.0)
    if progress < 2 * peak:
        return _half_cosine((progress - peak) / peak, 1.0, start)
    return _half_cosine((progress - 2 * peak) / (1.0 - 2 * peak), start, final)


def check_share(name: str, value: float, *, low: float = 0.0, high: float = 1.0) -> None:
    """Refuse a share that is out of its range, both ends of which are allowed.

    Args:
        name: of the setting.
        value: what was given.
        low: least that is allowed.
        high: most that is allowed.

    Raises:
        RecipeError: it is out of range, or no number.

    Example:
        >>> check_share("warmup", 1.5)
        Traceback (most recent call last):
        ...
        stablelightning.errors.RecipeError: warmup must be a number from 0 to 1, got 1.5.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise RecipeError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}.")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a number > 0.

    Raises:
        RecipeError: it is none.

    Example:
        >>> check_positive("exponent", 0.5)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise RecipeError(f"{name} must be a number > 0, got {value!r}.")


def check_not_negative(name: str, value: float) -> None:
    """Refuse what is not a number >= 0.

    Raises:
        RecipeError: it is none.

    Example:
        >>> check_not_negative("weight_decay", 0.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise RecipeError(f"{name} must be a number >= 0, got {value!r}.")


def _line(share: float, first: float, last: float) -> float:
    return first + (last - first) * share


def _half_cosine(share: float, first: float, last: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * share))
