"""Figures of how well a regression knows its own error: arrays in, matplotlib ``Figure`` out."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from stablelightning.errors import DataError, RecipeError
from stablelightning.report.statistics import Array, Floats, as_floats
from stablelightning.report.style import (
    BAND_ALPHA,
    COLOURS,
    INK,
    MUTED,
    legend,
    new_figure,
    say,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More rows than this make one grey mass; evenly spaced ones of the sorted rows show the same.
_MOST_ROWS = 200

_LEVELS = np.linspace(0.05, 0.95, 19)
_NAMED_LEVEL = 0.9  # the one that the sentence is about; one of the above


def interval_plot(
    mean: Array, std: Array, target: Array, *, level: float = 0.9, label: str = "target"
) -> "Figure":
    """Plot predictions in ascending order with their central interval, and what was observed.

    Args:
        mean: ``(N,)`` predictive mean, in target units.
        std: ``(N,)`` predictive standard deviation, in target units, >= 0; the interval is that of
            a normal distribution.
        target: ``(N,)``, in target units.
        level: nominal coverage of the interval, in (0, 1).
        label: name and unit of the target.

    Returns:
        A figure of at most 200 rows, evenly spaced among the sorted ones; its sentence counts all.

    Raises:
        DataError: lengths differ, there are no rows, or a standard deviation is negative or NaN.
        RecipeError: ``level`` is out of its range.

    Example:
        >>> interval_plot([1.0, 2.0], [0.5, 0.5], [1.2, 4.0]).get_suptitle()
        'The 90 % intervals hold 50 % of 2 targets'
    """
    if not 0 < level < 1:
        raise RecipeError(f"level must be in (0, 1), got {level}; 0.9 is usual.")
    centre, spread, observed = _checked(mean, std, target)
    half = NormalDist().inv_cdf((1 + level) / 2) * spread
    return _drawn(centre, (centre - half, centre + half), observed, level=level, label=label)


def bounds_plot(
    mean: Array,
    lower: Array,
    upper: Array,
    target: Array,
    *,
    level: float = 0.9,
    label: str = "target",
) -> "Figure":
    """Plot predictions in ascending order with intervals of any form, and what was observed.

    As :func:`interval_plot`, with the ends that were promised instead of those of a normal
    distribution.

    Args:
        mean: ``(N,)`` predictive mean, in target units.
        lower: ``(N,)`` lower end of each interval, in target units.
        upper: ``(N,)`` upper end.
        target: ``(N,)``, in target units.
        level: what the intervals promise to hold, in (0, 1).
        label: name and unit of the target.

    Raises:
        DataError: lengths differ, there are no rows, or an end is NaN or infinite.
        RecipeError: ``level`` is out of its range.

    Example:
        >>> bounds_plot([1.0, 2.0], [0.5, 1.5], [3.0, 2.5], [1.2, 4.0]).get_suptitle()
        'The 90 % intervals hold 50 % of 2 targets'
    """
    if not 0 < level < 1:
        raise RecipeError(f"level must be in (0, 1), got {level}; 0.9 is usual.")
    centre, low, high, observed = (as_floats(v).ravel() for v in (mean, lower, upper, target))
    if not len(centre) == len(low) == len(high) == len(observed) or not len(centre):
        raise DataError(
            "mean, lower, upper and target must have the same rows, at least one; got "
            f"{len(centre)}, {len(low)}, {len(high)} and {len(observed)}."
        )
    ends = np.isfinite(low) & np.isfinite(high)
    if not ends.all():
        raise DataError(f"intervals must be finite to be drawn, got {int((~ends).sum())} others.")
    return _drawn(centre, (low, high), observed, level=level, label=label)


def _drawn(
    centre: Floats, ends: tuple[Floats, Floats], observed: Floats, *, level: float, label: str
) -> "Figure":
    inside = (ends[0] <= observed) & (observed <= ends[1])
    order = np.argsort(centre, kind="stable")
    if len(order) > _MOST_ROWS:
        order = order[np.linspace(0, len(order) - 1, _MOST_ROWS).round().astype(int)]
    rank = np.arange(1, len(order) + 1)
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    look: dict[str, Any] = {"color": COLOURS[0], "alpha": BAND_ALPHA, "linewidth": 0}
    name = f"{level * 100:.0f} % interval"
    axes.fill_between(rank, ends[0][order], ends[1][order], label=name, **look)
    axes.plot(rank, centre[order], color=COLOURS[0], linewidth=1.4, label="predicted mean")
    for chosen, colour, marker, text in (
        (inside[order], INK, "o", "observed, inside"),
        (~inside[order], COLOURS[1], "D", "observed, outside"),
    ):
        axes.plot(
            rank[chosen], observed[order][chosen], marker, color=colour, markersize=3.2, label=text
        )
    axes.margins(x=0.015)
    tidy(axes, x="test row, in ascending order of its prediction", y=label)
    legend(axes, columns=2)
    say(
        figure,
        f"The {level * 100:.0f} % intervals hold {inside.mean() * 100:.0f} % of "
        f"{len(observed):,} targets",
    )
    return figure


def interval_calibration(
    mean: Array | Mapping[str, Array], std: Array | Mapping[str, Array], target: Array
) -> "Figure":
    r"""Plot the observed against the nominal coverage of central intervals.

    Below the diagonal intervals are too narrow (over-confident), above it too wide. The grey band
    is where 95 % of perfectly calibrated models would lie with this number of rows, level by level.

    Args:
        mean: ``(N,)`` in target units, or a mapping of names to such arrays, which are overlaid.
        std: ``(N,)``, >= 0, or a mapping with the same names.
        target: ``(N,)``, in target units.

    Raises:
        DataError: lengths or names differ, there are no rows, or a standard deviation is negative
            or NaN.

    Source:
        Kuleshov, Fenner & Ermon 2018, arXiv:1807.00263 (calibration of regressions).

    Example:
        >>> interval_calibration([1.0, 2.0], [9.0, 9.0], [1.2, 2.1]).get_suptitle()
        'The 90 % intervals hold 100 % of 2 targets, which chance\nalone explains'
    """
    means = mean if isinstance(mean, Mapping) else {"": mean}
    stds = std if isinstance(std, Mapping) else {"": std}
    if means.keys() != stds.keys():
        raise DataError(
            f"mean and std must have the same names, got {sorted(means)} and {sorted(stds)}."
        )
    figure = new_figure(5.0, 4.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    coverage: dict[str, float] = {}
    rows = 0
    for position, name in enumerate(means):
        centre, spread, observed = _checked(means[name], stds[name], target)
        rows = len(observed)
        shares = _coverage(centre, spread, observed)
        coverage[name] = float(shares[np.isclose(_LEVELS, _NAMED_LEVEL)][0])
        axes.plot(
            _LEVELS,
            shares,
            color=COLOURS[position % len(COLOURS)],
            linewidth=1.2,
            marker="os^Dv"[position % 5],
            markersize=4,
            label=name or "observed",
        )
    low, high = _chance_band(_LEVELS, rows)
    axes.fill_between(
        _LEVELS, low, high, color=MUTED, alpha=BAND_ALPHA, linewidth=0, label="95 % by chance"
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    tidy(axes, x="nominal coverage", y="observed coverage", grid="both")
    legend(axes, columns=3)
    say(figure, _coverage_sentence(coverage, rows))
    return figure


def _coverage(centre: Floats, spread: Floats, observed: Floats) -> Floats:
    quantiles = np.array([NormalDist().inv_cdf((1 + level) / 2) for level in _LEVELS])
    inside = np.abs(observed - centre)[None] <= quantiles[:, None] * spread[None]
    share: Floats = inside.mean(1)
    return share


def _chance_band(levels: Floats, rows: int) -> tuple[Floats, Floats]:
    """Where 95 % of observed shares lie if every nominal level is true (score interval)."""
    half = NormalDist().inv_cdf(0.975) * np.sqrt(levels * (1 - levels) / rows)
    return np.clip(levels - half, 0, 1), np.clip(levels + half, 0, 1)


def _coverage_sentence(coverage: Mapping[str, float], rows: int) -> str:
    """Say it of the last series, which by custom is the sampled one."""
    name, share = list(coverage.items())[-1]
    low, high = _chance_band(np.array([_NAMED_LEVEL]), rows)
    verdict = (
        "so they are too narrow"
        if share < low[0]
        else "so they are too wide"
        if share > high[0]
        else "which chance alone explains"
    )
    of = f" of {name}" if name else ""
    hold = (
        f"The {100 * _NAMED_LEVEL:.0f} % intervals{of} hold {share * 100:.0f} % of {rows:,} targets"
    )
    return f"{hold}, {verdict}"


def _checked(mean: Array, std: Array, target: Array) -> tuple[Floats, Floats, Floats]:
    centre, spread, observed = (as_floats(values).ravel() for values in (mean, std, target))
    if not len(centre) == len(spread) == len(observed) or not len(centre):
        raise DataError(
            "mean, std and target must have the same rows, at least one; got "
            f"{len(centre)}, {len(spread)} and {len(observed)}."
        )
    if not (spread >= 0).all():
        raise DataError(
            f"a standard deviation must be >= 0, got {spread.min()}; pass the square root of the "
            "variance."
        )
    return centre, spread, observed
