"""Figure of what is gained by leaving the least certain rows to somebody else."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from stablelightning.errors import DataError
from stablelightning.functional.selective import aurc, risk_coverage_curve
from stablelightning.report.statistics import Array, Floats, as_floats, wilson_interval
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A risk of fewer rows than this jumps between 0 and a third; the curve begins after them.
_FEWEST = 5

#: The share that the sentence leaves out, where nothing was decided.
_LEFT_OUT = 0.1


#: The y axis holds what the curves do from this coverage on; before it they rest on few rows.
_CALM = 0.05

_HEADROOM = 1.35


class _Series(NamedTuple):
    coverage: Floats
    risk: Floats
    area: float


def risk_coverage(
    uncertainty: Mapping[str, Array],
    loss: Mapping[str, Array],
    *,
    squared: bool = False,
    label: str = "wrong answers",
    answered: Array | None = None,
) -> "Figure":
    r"""Plot the risk of the rows that are answered against their share, from the surest row on.

    A falling risk towards the left says that the uncertainty knows where the errors are. The dashed
    line is the best order that there could be for the series to look at (all errors last), the
    dotted one its risk where rows are left out blindly. The band is Wilson's 95 % interval of that
    series, point by point.

    Args:
        uncertainty: by name, ``(N,)`` each, larger where a row is less certain. The second one is
            the one to look at, or the only one.
        loss: by the same names, ``(N,)``: 1 where the answer is wrong and 0 where it is right
            (shares between them for rows of several answers), or the squared error.
        squared: the losses are squared errors, of whose mean the root is shown; otherwise they are
            shares, shown in percent.
        label: what the risk is, with its unit if ``squared``.
        answered: ``(N,)`` bool, the rows that were answered: a point beside the curves.

    Returns:
        A figure with the area under each curve (AURC; of squared errors before the root) in the
        legend.

    Raises:
        DataError: names or lengths differ, there are no rows, or NaN.

    Source:
        El-Yaniv, Wiener 2010, JMLR 11 (the curve); Geifman et al. 2018, arXiv:1805.08206 (AURC).

    Example:
        >>> score, wrong = np.arange(20) / 20, np.arange(20) >= 18
        >>> risk_coverage({"entropy": score}, {"entropy": wrong}).get_suptitle()
        'Leaving out the least certain 10 % of the rows changes wrong answers\nfrom 10 to 0\xa0%'
    """
    if uncertainty.keys() != loss.keys() or not uncertainty:
        raise DataError(
            "uncertainty and loss must have the same names, at least one; got "
            f"{sorted(uncertainty)} and {sorted(loss)}."
        )
    series = {name: _series(uncertainty[name], loss[name]) for name in uncertainty}
    place = min(1, len(series) - 1)
    name = list(series)[place]
    costs = as_floats(loss[name]).ravel()
    figure = new_figure(6.0, 4.6)
    axes = figure.subplots()
    uncertain = 0.0
    if set(np.unique(costs)) <= {0.0, 1.0} and not squared:
        uncertain = _draw_band(axes, series[name], len(costs), COLOURS[place])
    for position, (each, (coverage, risk, area)) in enumerate(series.items()):
        text = f"{each}, AURC {area:.3g}"
        look: dict[str, Any] = {
            "color": COLOURS[position % len(COLOURS)],
            "linewidth": 1.4,
            "label": text,
        }
        shown = coverage * len(costs) >= min(_FEWEST, len(costs))
        axes.plot(coverage[shown], _shown(risk[shown], squared), **look)
    best, whole = _series(costs, costs), series[name].risk[-1]
    faint: dict[str, Any] = {"color": MUTED, "linewidth": 0.9}
    text = "the best order"
    axes.plot(best.coverage, _shown(best.risk, squared), linestyle=(0, (4, 3)), label=text, **faint)
    axes.axhline(_shown(whole, squared), linestyle=":", label="no order", **faint)
    point = _point(costs, answered)
    if point is not None:
        height = _shown(point[1], squared)
        look = {"color": INK, "markersize": 6, "zorder": 4, "clip_on": False}
        axes.plot(point[0], height, "D", label="as decided", **look)
    calm = [each.risk[each.coverage >= min(_CALM, 1)].max() for each in series.values()]
    top = float(_shown(max(calm), squared)) * _HEADROOM
    axes.set(xlim=(0, 1.01), ylim=(0, max(top, uncertain) or 1))
    unit = "" if squared else " (% of the rows answered)"
    tidy(axes, x="share of rows answered (coverage)", y=f"{label}{unit}", grid="both")
    legend(axes, columns=2)
    say(figure, _sentence(series[name], point, squared, label))
    return figure


def _shown(risk: Any, squared: bool) -> Any:
    return np.sqrt(risk) if squared else 100 * risk


def _draw_band(axes: "Axes", series: _Series, rows: int, colour: str) -> float:
    """Draw the interval of every risk, and return the upper end of the last one."""
    count = series.coverage * rows
    low, high = wilson_interval(series.risk * count, count)
    shown = count >= _FEWEST
    coverage, band = series.coverage[shown], (100 * low[shown], 100 * high[shown])
    axes.fill_between(coverage, *band, color=colour, alpha=BAND_ALPHA, linewidth=0)
    return 100 * float(high[-1])


def _series(uncertainty: Array, loss: Array) -> _Series:
    score, cost = (torch.as_tensor(as_floats(values).ravel()) for values in (uncertainty, loss))
    curve = risk_coverage_curve(score, cost)
    return _Series(curve.coverage.numpy(), curve.risk.numpy(), float(aurc(score, cost)))


def _point(costs: Floats, answered: Array | None) -> tuple[float, float] | None:
    """Coverage and risk of what was decided; ``None`` where nothing was, or nobody is answered."""
    if answered is None:
        return None
    chosen = as_floats(answered).ravel() > 0
    if len(chosen) != len(costs):
        raise DataError(
            f"answered must say it of every row, got {len(chosen)} for {len(costs)} rows."
        )
    return (float(chosen.mean()), float(costs[chosen].mean())) if chosen.any() else None


def _sentence(series: _Series, point: tuple[float, float] | None, squared: bool, label: str) -> str:
    which = "" if point else "the least certain "
    if point is None:
        place = int(np.searchsorted(series.coverage, 1 - _LEFT_OUT - 1e-9))
        point = float(series.coverage[place]), float(series.risk[place])
    what, _, _ = label.partition(" (")
    before, after = (_shown(risk, squared) for risk in (series.risk[-1], point[1]))
    unit = "" if squared else "\N{NO-BREAK SPACE}%"
    return (
        f"Leaving out {which}{100 * (1 - point[0]):.3g} % of the rows changes {what} from "
        f"{before:.3g} to {after:.3g}{unit}"
    )
