"""Trials of learning rates as a figure: the sweep, and the runs that confirm a rate."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stablelightning.errors import DataError
from stablelightning.report.statistics import Floats
from stablelightning.report.style import BAND_ALPHA, COLOURS, MUTED, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEXT_SIZE = 8.5
_WIDTH, _HEIGHT = 4.6, 3.6
#: The axis ends above the highest loss before the rise, by this share of the fall.
_HEADROOM = 0.35
#: Names at the right end are moved apart by this share of the axis.
_APART = 0.06
#: Losses of a run are shown as means of so many steps: single batches cross each other everywhere.
_WINDOW = 10


def learning_rate_figure(history: Mapping[str, Any]) -> "Figure":
    """Draw what was tried: the loss over the rate of a sweep, and over the steps of short runs.

    Args:
        history: of :class:`~stablelightning.callbacks.FindLearningRate` or
            :class:`~stablelightning.callbacks.HalveLearningRate`.

    Raises:
        DataError: nothing was tried.

    Example:
        >>> sweep = {"rates": [1e-3, 1e-2, 1e-1], "losses": [2.0, 1.0, 3.0]}
        >>> history = {"suggested": 0.01, "diverged_at": None, "own": 0.1, "runs": []} | sweep
        >>> figure = learning_rate_figure(history | {"smoothed": [2.0, 1.5, 2.0], "valley": None})
        >>> figure.axes[0].get_xscale()
        'log'
    """
    swept, ran = len(history.get("rates", ())) > 1, bool(history["runs"])
    if not swept and not ran:
        raise DataError("a picture needs rates that were tried, got none; fit for a step first.")
    figure = new_figure(_WIDTH * (1 + (swept and ran)) + 0.4, _HEIGHT)
    axes = np.atleast_1d(figure.subplots(1, 1 + (swept and ran)))
    if swept:
        _draw_sweep(axes[0], history)
    if ran:
        _draw_runs(axes[-1], history)
    say(figure, _sentence(history))
    return figure


def _draw_sweep(axes: "Axes", history: Mapping[str, Any]) -> None:
    rates = np.asarray(history["rates"], dtype=float)
    losses, smooth = _floats(history["losses"]), _floats(history["smoothed"])
    axes.set_xscale("log")
    tidy(axes, x="learning rate", y="loss")
    low, high = _limits(losses, smooth, history)
    axes.set_ylim(low, high)
    shown = np.where(losses <= high, losses, np.nan)
    axes.plot(rates, shown, ".", color=MUTED, markersize=3, alpha=0.5)
    axes.plot(rates, smooth, color=COLOURS[0], linewidth=1.8)
    if history.get("valley"):
        axes.axvspan(*history["valley"], color=COLOURS[0], alpha=BAND_ALPHA, linewidth=0)
        _name(axes, math.sqrt(math.prod(history["valley"])), "valley", COLOURS[0], row=0)
    marks = [
        (history["diverged_at"], "diverged", COLOURS[1], "-"),
        (history["own"], "was set", MUTED, ":"),
        (history["suggested"], "found", COLOURS[2], "-"),
    ]
    axes.set_xlim(rates[0], max(rates[-1], history["own"]) * 1.3)
    for row, (rate, word, colour, style) in enumerate(marks, start=1):
        if rate is not None:
            axes.axvline(rate, color=colour, linewidth=1.2, linestyle=style)
            _name(axes, rate, f"{word} {rate:.2g}", colour, row=row)


def _name(axes: "Axes", rate: float, words: str, colour: str, *, row: int) -> None:
    """Words above the axes, each in a line of its own, where they cover nothing."""
    place = float(axes.transAxes.inverted().transform(axes.transData.transform((rate, 0.0)))[0])
    axes.text(
        rate,
        1.02 + row * 0.055,
        words,
        transform=axes.get_xaxis_transform(),
        ha="center" if 0.15 < place < 0.85 else ("right" if place >= 0.85 else "left"),
        fontsize=_TEXT_SIZE,
        color=colour,
    )


def _limits(losses: Floats, smooth: Floats, history: Mapping[str, Any]) -> tuple[float, float]:
    """From below the lowest loss to a little above those before the rise."""
    known = smooth[np.isfinite(smooth)]
    first, lowest = float(known[0]), float(np.nanmin(smooth))
    begin = losses[: max(len(losses) // 3, 2)]
    top = max(first, float(np.nanmax(begin)))
    fall = max(top - min(lowest, float(np.nanmin(losses))), 1e-12)
    return top - 1.08 * fall, top + _HEADROOM * fall


def _draw_runs(axes: "Axes", history: Mapping[str, Any]) -> None:
    runs = history["runs"]
    tidy(axes, x="step", y=f"loss, mean of {_WINDOW} steps")
    curves = [_means(_floats(run["losses"])) for run in runs]
    ends = []
    for place, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        chosen = run["rate"] == history["suggested"]
        colour = _shade(place, len(runs)) if not chosen else COLOURS[2]
        axes.plot(
            np.arange(len(curve)) + 1,
            curve,
            color=colour,
            linewidth=2.4 if chosen else 1.2,
            linestyle="-" if run["stable"] else ":",
            zorder=3 if chosen else 2,
        )
        last = curve[np.isfinite(curve)]
        words = f"{run['rate']:.2g}" + ("" if run["stable"] else ", diverged")
        ends.append((float(last[-1]) if len(last) else math.nan, words, colour, chosen))
    known = [curve[np.isfinite(curve)] for curve in curves if np.isfinite(curve).any()]
    if known:
        start = max(float(curve[0]) for curve in known)
        lowest = min(float(curve.min()) for curve in known)
        fall = max(start - lowest, 1e-12)
        axes.set_ylim(lowest - 0.08 * fall, start + _HEADROOM * fall)
    _name_the_ends(axes, ends)


def _name_the_ends(axes: "Axes", ends: Sequence[tuple[float, str, str, bool]]) -> None:
    """Write the rates beside the curves, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    ordered = sorted((math.inf if math.isnan(end[0]) else end[0], *end[1:]) for end in ends)
    places = [min(max((loss - low) / (high - low), 0.0), 1.0) for loss, *_ in ordered]
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + _APART)
    limit = 1.0  # what does not fit under the top is moved down again, from above
    for n in reversed(range(len(places))):
        places[n] = min(places[n], limit)
        limit = places[n] - _APART
    for height, (_, words, colour, chosen) in zip(places, ordered, strict=True):
        axes.text(
            1.02,
            height,
            words,
            transform=axes.transAxes,
            va="center",
            fontsize=_TEXT_SIZE,
            color=colour,
            fontweight="bold" if chosen else "normal",
        )


def _shade(place: int, number: int) -> str:
    """Grey for small rates, ink for large ones: an order, not a choice of colours."""
    share = place / max(number - 1, 1)
    levels = [round(0xB0 + (0x26 - 0xB0) * share)] * 3
    return "#" + "".join(f"{level:02X}" for level in levels)


def _means(losses: Floats) -> Floats:
    """Mean of the last steps at each step; NaN where one of them broke."""
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(ends - _WINDOW, 0)
    means: Floats = (sums[ends] - sums[begins]) / (ends - begins)
    return means


def _floats(losses: Sequence[float | None]) -> Floats:
    return np.array([math.nan if loss is None else loss for loss in losses], dtype=float)


def _sentence(history: Mapping[str, Any]) -> str:
    found, own = history["suggested"], history["own"]
    if found is None:
        return f"No learning rate was found; it stays at {own:.2g}"
    if not history.get("applied", True):
        return f"A learning rate of {found:.2g} is suggested; {own:.2g} is kept"
    if found == own:
        return f"The learning rate of {own:.2g} is kept"
    return f"A learning rate of {found:.2g} in place of {own:.2g}"
