"""The depth plot: how the signal and its gradient fare from layer to layer."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stablelightning.errors import DataError
from stablelightning.report.statistics import Floats
from stablelightning.report.style import (
    COLOURS,
    FAINT,
    INK,
    MUTED,
    legend,
    new_figure,
    say,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from stablelightning.model.diagnosis import Diagnosis, Finding, LayerSignal

#: Outside of it a signal or a gradient is in danger in any precision.
HEALTHY = (1e-6, 1e3)

#: How a severity looks, worst first; the colours are told apart with every colour blindness.
SEVERITIES = {"error": COLOURS[1], "warning": COLOURS[4], "info": COLOURS[5]}

_AFTER, _BEFORE, _BAND = COLOURS[0], COLOURS[1], COLOURS[2]
DEPTH_WIDTH, DEPTH_HEIGHT = 8.4, 5.4  #: inches
_NAMES_PER_INCH = 7.5  # upright names of 7 points beside one another
_LONGEST_NAME = 26
_NAME_SIZE = 7.0
_FEWEST_DECADES = 4.0  # less would make a mountain of a healthy layer's noise
_DECADES_THAT_HOLD = 1.0  # from the first layer to the last; a head alone may change as much
_SMALLEST_DRAWN, _LARGEST_DRAWN = 1e-40, 1e40
_MANY_LAYERS = 60  # whose marks must be small to be told apart
_LETTER_INCHES = 0.062  # of a layer's name

_PRESENT = ("holds", "grows", "falls", "vanishes", "is not finite")
_PAST = ("held", "grew", "fell", "vanished", "was not finite")
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def depth_plot(diagnosis: "Diagnosis") -> "Figure":
    """Plot the std of every layer's output and the rms of its gradient, in order of execution.

    Both axes are logarithmic, so that a constant rate of decay is a straight line. The band is the
    range [1e-6, 1e3]. A ring marks a layer with a finding, in the colour of the worst; a value that
    is zero or not finite is a cross at the rim. What a cure changed is drawn before and after it.

    Args:
        diagnosis: with its ``before`` where cures were applied.

    Raises:
        DataError: the diagnosis has no layers.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import stablelightning as sl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> figure = depth_plot(sl.diagnose(net, torch.randn(16, 4)))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['std of the output', 'rms of the gradient']
    """
    figure = new_figure(DEPTH_WIDTH, DEPTH_HEIGHT)
    draw_depth(figure, diagnosis)
    say(figure, depth_sentence(diagnosis))
    return figure


def draw_depth(figure: "Figure | SubFigure", diagnosis: "Diagnosis") -> None:
    """Draw the two panels of :func:`depth_plot` into a figure, or into a part of one.

    Args:
        figure: changed.
        diagnosis: as for :func:`depth_plot`.

    Raises:
        DataError: the diagnosis has no layers.
    """
    layers = diagnosis.layers
    if not layers:
        raise DataError(
            "a depth plot needs at least one layer with weights, and this diagnosis has none."
        )
    upper, lower = figure.subplots(2, 1, sharex=True)
    before = diagnosis.before.layers if diagnosis.before is not None else []
    for axes, quantity in ((upper, "std"), (lower, "gradient_rms")):
        old, values = _values(before, quantity), _values(layers, quantity)
        _draw_band(axes, _limits(np.concatenate([old, values])))
        if before:
            _draw(axes, _places(layers, before), old, colour=_BEFORE, label="before")
        here = [float(place) for place in range(len(layers))]
        _draw(axes, here, values, colour=_AFTER, label="after" if before else "")
        _draw_rings(axes, layers, values, diagnosis.findings)
    tidy(upper, y="std of the output")
    tidy(lower, y="rms of the gradient")
    upper.tick_params(axis="x", length=0)
    _name_layers(lower, [layer.name for layer in layers])
    if upper.get_legend_handles_labels()[0]:
        legend(upper, columns=6)


def depth_sentence(diagnosis: "Diagnosis") -> str:
    """What the depth plot shows, in one sentence.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import stablelightning as sl
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> depth_sentence(sl.diagnose(net, torch.randn(16, 4)))
        'Over 2 layers the signal holds, and the gradient holds on its way back'
    """
    count = len(diagnosis.layers)
    layers = f"{count} layers" if count != 1 else "1 layer"
    signal, gradient = _fates(diagnosis.layers, _PRESENT)
    now = f"Over {layers} the signal {signal}, and the gradient {gradient} on its way back"
    if diagnosis.before is None:
        return now
    signal, gradient = _fates(diagnosis.before.layers, _PAST)
    return f"{now}; before the cures, the signal {signal} and the gradient {gradient}"


def _fates(layers: "Sequence[LayerSignal]", words: Sequence[str]) -> tuple[str, str]:
    """What becomes of the signal on its way forward, and of the gradient on its way back."""
    signal, gradient = _values(layers, "std"), _values(layers, "gradient_rms")
    return _fate(signal, words), _fate(gradient[::-1], words)


def _fate(values: Floats, words: Sequence[str]) -> str:
    holds, grows, falls, vanishes, not_finite = words
    if not np.isfinite(values).all():
        return not_finite
    if (values <= _SMALLEST_DRAWN).any():
        return vanishes
    decades = math.log10(values[-1] / values[0])
    if abs(decades) < _DECADES_THAT_HOLD:
        return holds
    factor = f"{10 ** abs(decades):.0f}"
    if abs(decades) >= 3:
        factor = "10" + f"{abs(decades):.0f}".translate(_SUPERSCRIPT)
    return f"{grows if decades > 0 else falls} {factor}-fold"


def _values(layers: "Sequence[LayerSignal]", quantity: str) -> Floats:
    return np.array([float(getattr(layer, quantity)) for layer in layers])


def _places(layers: "Sequence[LayerSignal]", before: "Sequence[LayerSignal]") -> list[float]:
    """Where the layers of before stand on the axis: under their own names where these remain."""
    now = {layer.name: float(place) for place, layer in enumerate(layers)}
    if all(layer.name in now for layer in before):
        return [now[layer.name] for layer in before]
    stretch = (len(layers) - 1) / max(len(before) - 1, 1)
    return [place * stretch for place in range(len(before))]


def _limits(values: Floats) -> tuple[float, float]:
    """Whole decades around the values, and at least some of them."""
    usable = values[_drawable(values)]
    low, high = (np.log10(usable.min()), np.log10(usable.max())) if len(usable) else (0.0, 0.0)
    missing = max(_FEWEST_DECADES - (high - low), 0.0) / 2
    return 10.0 ** math.floor(low - missing - 0.1), 10.0 ** math.ceil(high + missing + 0.1)


def _drawable(values: Floats) -> NDArray[np.bool_]:
    """Positive and finite, and not so far out that it would flatten all else."""
    return (values > _SMALLEST_DRAWN) & (values < _LARGEST_DRAWN)


def _draw_band(axes: "Axes", limits: tuple[float, float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.yaxis.minorticks_off()
    axes.axhspan(*HEALTHY, color=_BAND, alpha=0.07, linewidth=0)
    for edge, word in zip(HEALTHY, ("vanishing", "exploding"), strict=True):
        if limits[0] < edge < limits[1]:
            axes.axhline(edge, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
            # Beside the axes, where no curve can run through it.
            axes.annotate(
                word,
                (1, edge),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=_NAME_SIZE + 0.5,
                color=MUTED,
            )


def _draw(
    axes: "Axes", places: Sequence[float], values: Floats, *, colour: str, label: str
) -> None:
    many = len(places) > _MANY_LAYERS
    fine = _drawable(values)
    shown = np.where(fine, values, np.nan)
    axes.plot(
        places,
        shown,
        color=colour,
        linewidth=1.3,
        marker="o",
        markersize=1.8 if many else 3.2,
        markeredgewidth=0,
        label=label or "_",
        zorder=3,
    )
    low, high = axes.get_ylim()
    for place in np.flatnonzero(~fine).tolist():
        rim = low if values[place] <= _SMALLEST_DRAWN else high  # NaN compares to nothing: high
        axes.plot(
            *(places[place], rim, "x"),
            color=colour,
            markersize=2.5 if many else 5,
            clip_on=False,
            zorder=4,
            label="_",
        )


def _draw_rings(
    axes: "Axes",
    layers: "Sequence[LayerSignal]",
    values: Floats,
    findings: "Sequence[Finding]",
) -> None:
    order = list(SEVERITIES)
    by_severity = sorted(findings, key=lambda finding: -order.index(finding.severity))
    worst = {finding.module: finding.severity for finding in by_severity}  # the last one stays
    said: set[str] = set()
    for place in np.flatnonzero(_drawable(values)).tolist():
        severity = worst.get(layers[place].name)
        if severity is None:
            continue
        axes.plot(
            place,
            values[place],
            "o",
            markersize=8.5,
            markerfacecolor="none",
            markeredgecolor=SEVERITIES[severity],
            markeredgewidth=1.5,
            linestyle="none",
            clip_on=False,
            zorder=5,
            label="_" if severity in said else severity,
        )
        said.add(severity)


def _name_layers(axes: "Axes", names: Sequence[str]) -> None:
    most = int(DEPTH_WIDTH * _NAMES_PER_INCH)
    step = math.ceil(len(names) / most)
    shown = list(range(0, len(names), step))
    prefix = _common_prefix(names)
    labels = [_short(names[place][len(prefix) :]) for place in shown]
    axes.set_xlim(-0.6, len(names) - 0.4)
    room = DEPTH_WIDTH / len(names) / _LETTER_INCHES
    upright = max(map(len, labels)) + 2 > room
    axes.set_xticks(shown, labels, rotation=90 if upright else 0)
    axes.tick_params(axis="x", pad=2, labelcolor=INK, labelsize=_NAME_SIZE)
    axes.grid(axis="x", color=FAINT, linewidth=0.4, alpha=0.5)
    what = f"layer, the names after {prefix}" if prefix else "layer"
    every = f" (every {_ordinal(step)})" if step > 1 else ""
    axes.set_xlabel(f"{what}{every}", fontsize=9.0, color=INK)


def _common_prefix(names: Sequence[str]) -> str:
    """The dotted beginning that all names share, with its last dot."""
    if len(names) < 2:
        return ""
    first, *others = (name.split(".")[:-1] for name in names)
    shared = next(
        (n for n in range(len(first), 0, -1) if all(o[:n] == first[:n] for o in others)), 0
    )
    return "".join(f"{part}." for part in first[:shared])


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
