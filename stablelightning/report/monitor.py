"""Pictures of a monitored run: arrays in, matplotlib ``Figure`` out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stablelightning.errors import DataError
from stablelightning.report.statistics import Array, Floats, as_floats
from stablelightning.report.style import INK, MUTED, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Layers whose names still fit beside the rows.
_MOST_NAMES = 32
#: Colours reach over as many powers of ten; what is smaller is as good as nothing.
_MOST_DECADES = 8.0
_LETTERS = 28
#: Evenly perceived, and told apart with every common colour blindness.
_COLOURS = "cividis"


def gradient_heat_map(steps: Sequence[int], layers: Sequence[str], norms: Array) -> "Figure":
    """Plot the gradient norm of every layer over the steps, colours by powers of ten.

    Bands from left to right are layers that differ; a change from left to right is training. A
    picture that darkens towards the input shows gradients that vanish.

    Args:
        steps: ``(n,)`` increasing.
        layers: names, from input to output.
        norms: ``(n, layers)``; NaN where nothing was measured, which stays white.

    Raises:
        DataError: shapes do not fit, or there is nothing to show.

    Example:
        >>> figure = gradient_heat_map([0, 50], ["net.0", "net.2"], [[1e-3, 1.0], [1e-4, 0.5]])
        >>> figure.axes[0].get_xlabel()
        'step'
    """
    values, places = as_floats(norms), np.asarray(steps, dtype=float)
    if values.shape != (len(places), len(layers)) or not values.size:
        raise DataError(
            f"norms must be (steps, layers) with at least one of each, got {values.shape} for "
            f"{len(places)} steps and {len(layers)} layers; give History.table as it is."
        )
    if not (values > 0).any():
        raise DataError("a heat map needs a gradient that is not zero, got none; train first.")
    powers, low, high = _powers(values)
    figure = new_figure(7.2, min(max(2.6, 1.4 + 0.17 * len(layers)), 7.0))
    axes = figure.subplots()
    rows = np.arange(len(layers) + 1) - 0.5
    mesh = axes.pcolormesh(
        _edges(places), rows, powers.T, cmap=_COLOURS, vmin=low, vmax=high, rasterized=True
    )
    axes.invert_yaxis()  # the input on top, as one reads a network
    tidy(axes, x="step", y="layer, from the input down", grid="")
    _name_rows(axes, layers)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=28)
    ticks = np.arange(low, high + 1, max(1, round((high - low) / 6)))
    bar.set_ticks(ticks.tolist(), labels=[f"$10^{{{tick:.0f}}}$" for tick in ticks])
    bar.ax.tick_params(labelsize=8.5, colors=MUTED, labelcolor=INK, length=3, width=0.6)
    bar.outline.set_visible(False)
    bar.set_label("gradient norm", fontsize=9, color=INK)
    say(figure, _sentence(values, layers, places))
    return figure


def _powers(values: Floats) -> tuple[Floats, float, float]:
    """Powers of ten, and the whole ones that bound them."""
    positive = values[np.isfinite(values) & (values > 0)]
    high = float(np.ceil(np.log10(positive.max())))
    low = float(np.floor(np.log10(positive.min())))
    low = min(max(low, high - _MOST_DECADES), high - 1)
    shown = np.where(np.isfinite(values), np.clip(values, 10.0**low, 10.0**high), np.nan)
    powers: Floats = np.log10(shown)
    return powers, low, high


def _edges(steps: Floats) -> Floats:
    """Where the columns begin and end: half way between the steps that were measured."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([steps[:1], middle, steps[-1:]])


def _name_rows(axes: "Axes", layers: Sequence[str]) -> None:
    every = -(-len(layers) // _MOST_NAMES)
    shown = range(0, len(layers), every)
    names = [layers[n] for n in shown]
    short = [name if len(name) <= _LETTERS else f"...{name[3 - _LETTERS :]}" for name in names]
    axes.set_yticks(list(shown), labels=short, fontsize=7.5 if len(layers) > 12 else 8.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _sentence(values: Floats, layers: Sequence[str], steps: Floats) -> str:
    """How much of the last layer's gradient reaches the first one, at both ends of the run."""
    shares = values[:, 0] / np.where(values[:, -1] > 0, values[:, -1], np.nan)
    known = np.flatnonzero(np.isfinite(shares))
    if len(layers) < 2 or not len(known):
        return f"Gradient norm of {len(layers)} layers up to step {steps[-1]:,.0f}"
    said = [f"{_share(shares[n])} at step {steps[n]:,.0f}" for n in dict.fromkeys(known[[0, -1]])]
    return (
        f"The gradient of {layers[0]} is {', and '.join(said)} of that of {layers[-1]}"
        if len(said) == 1
        else f"Of the gradient of {layers[-1]}, {layers[0]} gets {said[0]} and {said[1]}"
    )


def _share(share: float) -> str:
    if share == 0:
        return "nothing"
    if share < 0.01:
        return f"1/{float(f'{1 / share:.1g}'):,.0f}"
    return f"{share:.0%}" if share < 1 else f"{share:.2g} times as much"
