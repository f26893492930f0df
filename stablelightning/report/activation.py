"""The race among activations as a figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stablelightning.errors import DataError
from stablelightning.report.style import COLOURS, MUTED, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Beyond the palette's six, lines are grey: nobody can tell more colours apart.
_WIDTH, _HEIGHT = 6.4, 3.8
_TEXT_SIZE = 8.5
#: Names at the right end are moved apart by this share of the axis.
_APART = 0.055


def race_figure(evidence: Mapping[str, Any]) -> "Figure":
    """Draw the held-out loss of every activation that raced.

    Args:
        evidence: what :meth:`ActivationRanking.to_dict` gives.

    Raises:
        DataError: nobody raced.

    Example:
        >>> curves = {"relu": [[0, 1.0], [10, 0.5]], "elu": [[0, 1.0], [10, 0.4]], "tanh": []}
        >>> figure = race_figure(
        ...     {"chosen": "elu", "incumbent": "relu", "target": 0.5, "seeds": 3, "curves": curves}
        ... )
        >>> figure.get_suptitle()
        'elu, in place of relu'
    """
    curves = {
        name: [(step, loss) for step, loss in curve if loss is not None]
        for name, curve in evidence["curves"].items()
    }
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        raise DataError("a race needs activations that raced, got none; more candidates may help.")
    chosen, incumbent = evidence["chosen"], evidence["incumbent"]
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    tidy(axes, x="optimizer steps", y=f"held-out loss, mean of {evidence['seeds']} seeds")
    axes.set_yscale("log" if _is_positive(curves) else "linear")
    axes.tick_params(which="minor", labelsize=_TEXT_SIZE)
    if evidence.get("target") is not None:
        axes.axhline(evidence["target"], color=MUTED, linewidth=0.8, linestyle=":")
    ends = []
    for place, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[place] if place < len(COLOURS) else MUTED
        axes.plot(
            [step for step, _ in curve],
            [loss for _, loss in curve],
            color=colour,
            linewidth=2.4 if name == chosen else 1.2,
            linestyle="--" if name == incumbent else "-",
            label=name,
        )
        ends.append((name, curve[-1][1], colour))
    _name_the_ends(axes, ends, chosen)
    say(figure, f"{chosen}, " + ("kept" if chosen == incumbent else f"in place of {incumbent}"))
    return figure


def _is_positive(curves: Mapping[str, list[tuple[int, float]]]) -> bool:
    return all(loss > 0 for curve in curves.values() for _, loss in curve)


def _name_the_ends(axes: Any, ends: list[tuple[str, float, str]], chosen: str) -> None:
    """Write the names beside the curves, moved apart where they would cover each other."""
    axes.figure.canvas.draw()
    to_axes = axes.transData + axes.transAxes.inverted()
    last = axes.get_xlim()[1]
    placed = sorted((float(to_axes.transform((last, loss))[1]), n, c) for n, loss, c in ends)
    previous = -1.0
    for height, name, colour in placed:
        previous = max(height, previous + _APART)
        weight = "bold" if name == chosen else "normal"
        axes.text(
            *(1.01, previous, name),
            transform=axes.transAxes,
            va="center",
            fontsize=_TEXT_SIZE,
            color=colour,
            fontweight=weight,
        )
