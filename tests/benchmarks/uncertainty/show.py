"""The figure of the page: what shift does to every way of predicting."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stablelightning.report.style import COLOURS, legend, new_figure, say, tidy
from tests.benchmarks.paired import interval
from tests.benchmarks.uncertainty.sets import NOISES, ROTATIONS
from tests.benchmarks.uncertainty.training import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {
    "rotation": ("rotation (degrees)", (0, *ROTATIONS)),
    "noise": ("noise (standard deviations of a pixel)", (0, *NOISES)),
}
_SCORES = {"nll": "NLL (nats)", "ece": "ECE (points)"}


def draw(measured: Mapping[str, Any]) -> "Figure":
    """NLL and ECE against the strength of a shift: means over the seeds, and their spread.

    Args:
        measured: what :func:`~tests.benchmarks.uncertainty.quality.measure` gives.
    """
    figure = new_figure(8.0, 5.4)
    grid = figure.subplots(len(_SCORES), len(_KINDS), sharey="row")
    for line, (score, label) in enumerate(_SCORES.items()):
        for column, (kind, (name, strengths)) in enumerate(_KINDS.items()):
            _draw(grid[line][column], measured["seeds"], kind, score, strengths)
            lowest, first = line == len(_SCORES) - 1, column == 0
            tidy(grid[line][column], x=name if lowest else "", y=label if first else "")
    legend(grid[0][0], columns=len(METHODS))
    say(figure, _sentence(measured["seeds"]))
    return figure


def _draw(
    axes: "Axes", seeds: Sequence[Any], kind: str, score: str, strengths: Sequence[float]
) -> None:
    for position, method in enumerate(METHODS):
        each = [
            [seed[kind][place][method][score] for seed in seeds] for place in range(len(strengths))
        ]
        colour = COLOURS[position]
        means = [interval(values).mean for values in each]
        axes.plot(strengths, means, color=colour, marker="o", markersize=3.5, label=method)
        low, high = [min(v) for v in each], [max(v) for v in each]
        axes.fill_between(strengths, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)


def _sentence(seeds: Sequence[Any]) -> str:
    """Who is the least wrong about itself where the images are turned the most."""
    last = {
        method: interval([seed["rotation"][-1][method]["ece"] for seed in seeds]).mean
        for method in METHODS
    }
    best, worst = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    return (
        f"Turned by {ROTATIONS[-1]} degrees, {best} is {last[best]:.0f} points too sure, "
        f"{worst} {last[worst]:.0f}"
    )
