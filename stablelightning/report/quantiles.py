"""Figure of how true the quantiles of a regression are, one-sided: too high, too low, or right."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stablelightning.errors import DataError
from stablelightning.functional.intervals import level_counts, quantile_calibration_error
from stablelightning.report.statistics import Array, Floats, as_floats
from stablelightning.report.style import (
    BAND_ALPHA,
    COLOURS,
    MUTED,
    legend,
    new_figure,
    say,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = np.linspace(0.01, 0.99, 99)
_MEDIAN = 49  # place of 0.5 among them
_BINS = 10
_TAIL = 0.05
_DOTTED = slice(9, None, 10)  # a marker at every tenth


def quantile_calibration(below: Array | Mapping[str, Array]) -> "Figure":
    r"""Plot the share of targets below each predicted quantile against that quantile's level.

    Above the diagonal predictions are too high, below it too low; an S that is flat in the middle
    says that they are too sure of themselves, a steep one that they are not sure enough. Underneath
    is how often the target fell into each tenth of its predicted distribution: equally often, if
    that is true. The grey bands hold 95 % of perfectly calibrated models with as many rows.

    Args:
        below: ``(N,)``, the probability that each row's distribution gives to values below its
            target, from :func:`~stablelightning.functional.intervals.gaussian_probability_below`
            or :func:`~stablelightning.functional.intervals.mixture_probability_below`; or a mapping
            of names to such arrays, which are overlaid.

    Raises:
        DataError: no rows, NaN, numbers outside [0, 1], or lengths that differ.

    Source:
        Kuleshov, Fenner, Ermon 2018, arXiv:1807.00263 (calibration of regressions); Dawid 1984,
        "Statistical theory: the prequential approach", JRSS A 147 (the probability transform).

    Example:
        >>> quantile_calibration(np.arange(0.005, 1, 0.01)).get_suptitle()
        'Quantiles are off by 0.0 percentage points on average, over\n100 targets, as chance alone
        explains'
    """
    named = below if isinstance(below, Mapping) else {"": below}
    series = {name: _checked(values) for name, values in named.items()}
    sizes = {len(values) for values in series.values()}
    if len(sizes) != 1:
        raise DataError(f"every series must be of the same rows, got {sorted(sizes)} of them.")
    (rows,) = sizes
    figure = new_figure(5.0, 5.6)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.2, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    errors: dict[str, float] = {}
    for position, (name, values) in enumerate(series.items()):
        errors[name] = _draw(upper, values, name, position)
        _draw_tenths(lower, values, position, len(series))
    half = NormalDist().inv_cdf(0.975) * np.sqrt(_LEVELS * (1 - _LEVELS) / rows)
    low, high = np.clip(_LEVELS - half, 0, 1), np.clip(_LEVELS + half, 0, 1)
    look: dict[str, Any] = {"color": MUTED, "alpha": BAND_ALPHA, "linewidth": 0, "zorder": 0.5}
    upper.fill_between(_LEVELS, low, high, label="95 % by chance", **look)
    spread = NormalDist().inv_cdf(0.975) * np.sqrt((1 - 1 / _BINS) / _BINS / rows)
    lower.fill_between(
        [0, 1], *(100 * max(1 / _BINS + sign * spread, 0) for sign in (-1, 1)), **look
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.01))
    tidy(upper, y="share of targets below the quantile", grid="both")
    tidy(lower, x="level of the predicted quantile", y="targets (%)")
    legend(upper, columns=2)
    say(figure, _sentence(series, errors, rows))
    return figure


def _checked(below: Array) -> Floats:
    values = as_floats(below).ravel()
    bad = int((~((values >= 0) & (values <= 1))).sum())
    if not len(values) or bad:
        raise DataError(
            "a quantile plot needs a probability for each row, at least one, got "
            f"{len(values)} numbers, {bad} of them not in [0, 1]; pass "
            "gaussian_probability_below(mean, variance, target)."
        )
    return values


def _draw(axes: "Axes", below: Floats, name: str, position: int) -> float:
    """Draw one series, and return its quantile calibration error."""
    values = torch.as_tensor(below)
    shares = level_counts(values, torch.as_tensor(_LEVELS)).numpy() / len(below)
    error = float(quantile_calibration_error(values))
    colour = COLOURS[position % len(COLOURS)]
    axes.plot(_LEVELS, shares, color=colour, linewidth=1.2)
    axes.plot(
        _LEVELS[_DOTTED],
        shares[_DOTTED],
        "os^Dv"[position % 5],
        color=colour,
        markersize=4,
        label=f"{name}{', ' if name else ''}error {error:.3f}",
    )
    return error


def _draw_tenths(axes: "Axes", below: Floats, position: int, series: int) -> None:
    edges = np.linspace(0, 1, _BINS + 1)
    count, _ = np.histogram(below, edges)
    width = 0.8 / _BINS / series
    centre = (edges[:-1] + edges[1:]) / 2 + (position - (series - 1) / 2) * width
    shares = 100 * count / len(below)
    axes.bar(centre, shares, width * 0.94, color=COLOURS[position % len(COLOURS)], linewidth=0)


def _sentence(series: Mapping[str, Floats], errors: Mapping[str, float], rows: int) -> str:
    """Say it of the last series, which by custom is the one to look at."""
    name, below = list(series.items())[-1]
    # What perfect quantiles would miss on average: the mean distance of a binomial share.
    chance = float(np.sqrt(2 / np.pi * _LEVELS * (1 - _LEVELS) / rows).mean())
    told = (
        f"Quantiles are off by {100 * errors[name]:.1f} percentage points on average, over "
        f"{rows:,} targets"
    )
    if errors[name] <= 2 * chance:
        return f"{told}, as chance alone explains"
    middle = float((below <= _LEVELS[_MEDIAN]).mean())
    if abs(middle - 0.5) > 2 * np.sqrt(0.25 / rows):
        return f"{told}: predictions are too {'high' if middle > 0.5 else 'low'}"
    tails = float(((below < _TAIL) | (below > 1 - _TAIL)).mean())
    return f"{told}: predictions are {'too sure' if tails > 2 * _TAIL else 'not sure enough'}"
