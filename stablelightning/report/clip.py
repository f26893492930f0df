"""Pictures of gradient clipping: where a threshold comes from, and what it did."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stablelightning.errors import DataError
from stablelightning.report.statistics import Floats
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

    from stablelightning.model.clip import ClipRecord

_NORMS, _BOUND = COLOURS[0], COLOURS[1]
_FEWEST_BARS, _MOST_BARS = 8, 30
_LEAST_RATIO = 1.5  # of the ends of a logarithmic axis; less would make mountains of noise
_SMALLEST = 1e-30  # a norm of zero has no place on a logarithmic axis


def threshold_histogram(norms: Sequence[float], threshold: float) -> "Figure":
    """Plot the gradient norms that a threshold was chosen from, with their mean and the threshold.

    Args:
        norms: finite ones are drawn.
        threshold: in the same unit.

    Raises:
        DataError: no norm is finite and above zero.

    Example:
        >>> figure = threshold_histogram([0.5, 0.8, 1.0, 1.1, 4.0], 2.96)
        >>> figure.axes[0].get_xlabel()
        'joint norm of the gradients'
    """
    values = np.asarray([n for n in norms if math.isfinite(n) and n > 0], dtype=float)
    if not len(values):
        raise DataError(
            "a histogram needs a gradient norm that is finite and above zero, got none of "
            f"{len(norms)}; measure more steps."
        )
    figure = new_figure(6.4, 3.1)
    _histogram(figure.subplots(), values, threshold)
    above = int((values > threshold).sum())
    say(figure, f"{above} of {len(values)} norms lie above the threshold of {threshold:.3g}")
    return figure


def clipping_curve(
    record: "ClipRecord",
    *,
    label: str = "joint norm of the gradients",
    first: Sequence[float] = (),
) -> "Figure":
    """Plot what was measured over the steps before clipping, with the bound and what lies above it.

    Args:
        record: with at least one finite measure.
        label: what was measured.
        first: the norms that the bound was chosen from; they are drawn beside it.

    Raises:
        DataError: nothing finite was measured.

    Example:
        >>> from stablelightning.model.clip import ClipRecord
        >>> record = ClipRecord()
        >>> for norm in [0.5, 0.8, 6.0, 0.7]:
        ...     record.add(norm, 2.0)
        >>> clipping_curve(record).get_suptitle()
        '1 of 4 steps was clipped; the largest measure was 3 times the threshold'
    """
    highs = np.asarray(record.highs, dtype=float)
    if not (np.isfinite(highs) & (highs > 0)).any():
        raise DataError("a curve needs a finite measure above zero, got none; train first.")
    values = np.asarray([n for n in first if math.isfinite(n) and n > 0], dtype=float)
    figure = new_figure(8.4 if len(values) else 7.2, 3.3)
    if len(values):
        curve, beside = figure.subplots(1, 2, width_ratios=[2.4, 1])
        _histogram(beside, values, record.bounds[-1], named=False)
        beside.set_title("the first norms", fontsize=9, color=MUTED, loc="left")
    else:
        curve = figure.subplots()
    _curve(curve, record, label)
    say(figure, _sentence(record))
    return figure


def _curve(axes: "Axes", record: "ClipRecord", label: str) -> None:
    lows = np.where(np.isfinite(record.lows), np.maximum(record.lows, _SMALLEST), np.nan)
    highs = np.where(np.isfinite(record.highs), np.maximum(record.highs, _SMALLEST), np.nan)
    bounds = np.asarray(record.bounds, dtype=float)
    steps = np.arange(len(highs)) * record.width + record.width / 2
    if record.width > 1:
        axes.fill_between(steps, lows, highs, color=_NORMS, alpha=2 * BAND_ALPHA, linewidth=0)
    name = "before clipping" if record.width == 1 else "before clipping, largest and least"
    axes.plot(steps, highs, color=_NORMS, linewidth=0.9, label=name)
    if (bounds > 0).all():
        axes.step(steps, bounds, where="mid", color=_BOUND, linewidth=1.4, label="threshold")
        cut = highs > bounds
        axes.fill_between(
            steps, bounds, np.where(cut, highs, bounds), color=_BOUND, alpha=0.25, linewidth=0
        )
        axes.set_yscale("log")
        _open(axes, "y", [lows, highs, bounds])
        legend(axes, columns=2)
    axes.set_xlim(0, max(record.steps, 1))
    tidy(axes, x="step of the optimizer", y=label)


def _histogram(axes: "Axes", values: Floats, threshold: float, *, named: bool = True) -> None:
    low, high = _range([values, np.asarray([threshold])])
    bars = min(max(_FEWEST_BARS, round(math.sqrt(len(values)) * 2)), _MOST_BARS)
    edges = np.geomspace(low, high, bars + 1)
    axes.hist(values, bins=edges.tolist(), color=_NORMS, alpha=0.75, linewidth=0)
    mean = float(values.mean())
    axes.axvline(mean, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=f"mean {mean:.3g}")
    axes.axvline(threshold, color=_BOUND, linewidth=1.6, label=f"threshold {threshold:.3g}")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _plain_ticks(axes, "x")
    axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    tidy(axes, x="joint norm of the gradients" if named else "norm", y="how many")
    if named:
        legend(axes, columns=2)


def _range(parts: Sequence[Floats]) -> tuple[float, float]:
    """Ends of a logarithmic axis that has room for all."""
    together = np.concatenate([part.ravel() for part in parts])
    together = together[np.isfinite(together) & (together > 0)]
    low, high = float(together.min()), float(together.max())
    room = max(_LEAST_RATIO / (high / low), 1.12)
    return low / room, high * room


def _open(axes: "Axes", which: str, parts: Sequence[Floats]) -> None:
    low, high = _range(parts)
    axes.set_ylim(low, high)
    _plain_ticks(axes, which)


def _plain_ticks(axes: "Axes", which: str) -> None:
    """Numbers as one writes them, a few, also where the axis spans less than a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    narrow = decades < 2.5
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=7))
    axis.set_minor_formatter(NullFormatter())
    if narrow:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _sentence(record: "ClipRecord") -> str:
    verb = "was" if record.clipped == 1 else "were"
    said = f"{record.clipped:,} of {record.steps:,} steps {verb} clipped"
    finite = [h / b for h, b in zip(record.highs, record.bounds, strict=True) if b > 0]
    largest = max((ratio for ratio in finite if math.isfinite(ratio)), default=0.0)
    if record.clipped and largest >= 2:
        said += f"; the largest measure was {largest:,.0f} times the threshold"
    if record.not_finite:
        was = "was" if record.not_finite == 1 else "were"
        said += f"; {record.not_finite:,} {was} not finite"
    return said
