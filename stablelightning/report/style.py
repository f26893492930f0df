"""The one look of every figure: few colours, thin lines, no frame that says nothing."""

import textwrap
from typing import TYPE_CHECKING, Literal

from stablelightning.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150

# Okabe & Ito's palette, told apart with every common colour blindness and in grey; in the order in
# which series take them. The first is always the plain case, the second the one to look at.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#262626"
MUTED = "#6E6E6E"
FAINT = "#D9D9D9"
BAND_ALPHA = 0.14

_TITLE_SIZE = 11.0
_TEXT_SIZE = 9.0
_TITLE_LETTERS_PER_INCH = 12.0  # of DejaVu Sans, matplotlib's own font, at the title's size


def new_figure(width: float, height: float) -> "Figure":
    """A blank figure that belongs to no window and to no pyplot state.

    Args:
        width: inches, > 0.
        height: inches, > 0.

    Example:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    figure = require("matplotlib.figure", extra="recipes").Figure(
        figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white"
    )
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return figure  # type: ignore[no-any-return]


def say(figure: "Figure", sentence: str) -> None:
    """Put a sentence at the top of the figure, flush left: what is seen.

    Args:
        figure: changed.
        sentence: broken into lines that fit the figure's width.

    Example:
        >>> figure = new_figure(3, 2)
        >>> say(figure, "Every interval holds its target, and none is wider than it must be")
        >>> figure.get_suptitle().count(chr(10))
        1
    """
    width = figure.get_figwidth() * _TITLE_LETTERS_PER_INCH
    figure.suptitle(
        textwrap.fill(sentence, int(width)),
        x=0.02,
        ha="left",
        fontsize=_TITLE_SIZE,
        color=INK,
        linespacing=1.35,
    )


def tidy(
    axes: "Axes", *, x: str = "", y: str = "", grid: Literal["x", "y", "both", ""] = "y"
) -> None:
    """Label the axes, and take away what is not data.

    Args:
        axes: changed.
        x: label with its unit.
        y: label with its unit.
        grid: ``"x"``, ``"y"``, ``"both"`` or ``""``.
    """
    axes.set_xlabel(x, fontsize=_TEXT_SIZE, color=INK)
    axes.set_ylabel(y, fontsize=_TEXT_SIZE, color=INK)
    axes.tick_params(labelsize=_TEXT_SIZE - 0.5, colors=MUTED, labelcolor=INK, length=3, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=MUTED, linewidth=0.6)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=FAINT, linewidth=0.6, alpha=0.7)


def legend(axes: "Axes", *, columns: int) -> None:
    """A legend without a frame, in a row above the axes, where it can hide no data.

    Args:
        axes: changed.
        columns: entries per line.
    """
    axes.legend(
        frameon=False,
        fontsize=_TEXT_SIZE,
        labelcolor=INK,
        handlelength=1.5,
        columnspacing=1.4,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.01),
        borderaxespad=0.0,
    )
