"""Figure of where the uncertainty of each row comes from: noise in the data, or the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stablelightning.errors import DataError
from stablelightning.report.statistics import Array, Floats, as_floats, auroc
from stablelightning.report.style import COLOURS, INK, MUTED, legend, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stablelightning.model.abstain import Thresholds

# More dots than this make one grey mass; evenly spaced rows show the same, and all are counted.
_MOST_ROWS = 4000

_ROOM = 1.06  # of the axes beyond the largest value
_STEPS = 200


def decomposition_scatter(
    aleatoric: Array,
    epistemic: Array,
    wrong: Array,
    *,
    unit: str = "nats",
    names: Sequence[str] = ("right", "wrong"),
    thresholds: "Thresholds | None" = None,
) -> "Figure":
    """Plot what the model does not know against the noise that it sees, a dot for each row.

    Right and below lie rows that are noisy and well known, left and above rows that the model
    itself is unsure of; on lines of slope -1 the total is the same. Where thresholds are given,
    lines part the rows that are answered from those that are not, and these by their reason.

    Args:
        aleatoric: ``(N,)``, the part that is noise in the data.
        epistemic: ``(N,)``, the part that the model does not know.
        wrong: ``(N,)`` bool, the rows that are to be told apart.
        unit: of both parts.
        names: what to call the rows that are not ``wrong``, and those that are.
        thresholds: by which rows are answered.

    Raises:
        DataError: lengths differ, there are no rows, or a part is NaN or infinite.

    Source:
        Depeweg et al. 2018, arXiv:1710.07283 (the split).

    Example:
        >>> figure = decomposition_scatter([0.1, 0.6], [0.0, 0.3], [False, True])
        >>> figure.axes[0].get_xlabel()
        'aleatoric: noise in the data (nats)'
    """
    noise, doubt, bad = (as_floats(values).ravel() for values in (aleatoric, epistemic, wrong))
    if not len(noise) == len(doubt) == len(bad) or not len(noise):
        raise DataError(
            "aleatoric, epistemic and wrong must have the same rows, at least one; got "
            f"{len(noise)}, {len(doubt)} and {len(bad)}."
        )
    if not (np.isfinite(noise).all() and np.isfinite(doubt).all()):
        lost = int((~(np.isfinite(noise) & np.isfinite(doubt))).sum())
        raise DataError(f"a scatter needs finite uncertainties, got {lost} rows that are not.")
    figure = new_figure(6.0, 5.0)
    axes = figure.subplots()
    chosen = np.linspace(0, len(noise) - 1, min(len(noise), _MOST_ROWS)).round().astype(int)
    for which, colour, marker, name in (
        (bad == 0, COLOURS[0], "o", names[0]),
        (bad > 0, COLOURS[1], "D", names[1]),
    ):
        shown = chosen[which[chosen]]
        axes.scatter(
            noise[shown],
            doubt[shown],
            s=13,
            color=colour,
            marker=marker,
            alpha=0.55,
            linewidth=0,
            zorder=3,
            label=f"{name} ({int(which.sum()):,})",
        )
    right, top = max(noise.max(), 1e-12) * _ROOM, max(doubt.max(), 1e-12) * _ROOM
    axes.set(xlim=(-0.01 * right, right), ylim=(-0.01 * top, top))
    if thresholds is not None:
        _draw_thresholds(axes, thresholds, right, top)
    tidy(
        axes,
        x=f"aleatoric: noise in the data ({unit})",
        y=f"epistemic: what the model does not know ({unit})",
        grid="both",
    )
    legend(axes, columns=3)
    say(figure, _sentence(noise, doubt, bad, names[1]))
    return figure


def _draw_thresholds(axes: "Axes", thresholds: "Thresholds", right: float, top: float) -> None:
    """The borders of the rule: unheard of, too much in total, and too much noise by itself."""
    look: dict[str, Any] = {"color": INK, "linewidth": 1.0, "zorder": 2}
    ceiling = min(thresholds.epistemic, top)
    noise = np.linspace(0, right, _STEPS)
    border = thresholds.total - noise
    seen = (border >= 0) & (border <= ceiling)
    axes.plot(noise[seen], border[seen], label="answered below", **look)
    if thresholds.epistemic <= top:
        axes.axhline(thresholds.epistemic, linestyle=(0, (4, 3)), **look)
        _name(axes, right, thresholds.epistemic, "out of distribution above")
    if thresholds.total < right:
        axes.plot([thresholds.total] * 2, [0, ceiling], linestyle=":", **look)
        _name(axes, right, 0, "aleatoric")  # apart from the other name, however narrow its region
    if thresholds.total < right + ceiling:
        between = min(thresholds.total, right)
        _name(axes, between, ceiling, "epistemic", above=False)


def _name(axes: "Axes", x: float, y: float, text: str, *, above: bool = True) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(-4, 3 if above else -4),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=8.5,
        color=MUTED,
        zorder=4,
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.0},
    )


def _sentence(noise: Floats, doubt: Floats, bad: Floats, name: str) -> str:
    share = 100 * float(doubt.sum()) / max(float((noise + doubt).sum()), 1e-300)
    told = f"{share:.0f} % of the uncertainty of {len(noise):,} rows is the model's own"
    if not 0 < (bad > 0).sum() < len(bad):
        return told
    area = auroc((noise + doubt)[bad == 0], (noise + doubt)[bad > 0])
    return f"{told}; the total tells rows that are {name} from others with AUROC {area:.2f}"
