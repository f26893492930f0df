"""Figures of what a model knows and what it does not: arrays in, matplotlib ``Figure`` out.

Those of a classifier are made here, those of a regression in
:mod:`stablelightning.report.intervals` (and offered here too). None uses pyplot: no window, no
state, safe in threads and on machines without a display.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stablelightning.errors import DataError
from stablelightning.files import written_whole
from stablelightning.report.intervals import bounds_plot, interval_calibration, interval_plot
from stablelightning.report.statistics import Array, Floats, as_floats, auroc, wilson_interval
from stablelightning.report.style import (
    BAND_ALPHA,
    COLOURS,
    DPI,
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
    from matplotlib.figure import Figure

__all__ = [
    "bounds_plot",
    "interval_calibration",
    "interval_plot",
    "most_uncertain_grid",
    "ood_histogram",
    "reliability_diagram",
    "save_figure",
]

_LINE, _LONGEST = 24, 12  # characters that fit over one picture of nine: of all, and of a name
_NUMBERS = ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")

_BAR_ALPHA, _BAR_WIDTH = 0.22, 7.0


def reliability_diagram(
    probabilities: Array | Mapping[str, Array], target: Array, *, bins: int = 15
) -> "Figure":
    """Plot accuracy against confidence, with the number of predictions per bin underneath.

    On the diagonal a confidence of 0.8 is right eight times in ten. The bands are 95 % intervals of
    each bin's accuracy (Wilson's, for its number of predictions): a band that holds the diagonal
    gives no reason to doubt the confidence there.

    Args:
        probabilities: ``(N, C)`` in [0, 1]; ``(N,)`` of the positive class; ``(N, L)`` with a
            target of the same shape for multi-label. A mapping of names to such arrays is overlaid,
            for example ``{"one pass": ..., "MC dropout": ...}``.
        target: ``(N,)`` class numbers, or ``(N, L)`` of 0 and 1.
        bins: number of bins of equal width, >= 1; with 15 the figure's errors are those of the
            summary.

    Raises:
        DataError: shapes do not fit, or there are no rows.

    Source:
        Guo et al. 2017, arXiv:1706.04599 (diagram, expected calibration error); Wilson 1927, JASA
        22(158) (interval).

    Example:
        >>> figure = reliability_diagram([[0.9, 0.1], [0.3, 0.7]], [0, 1])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['accuracy', 'predictions']
    """
    series = probabilities if isinstance(probabilities, Mapping) else {"": probabilities}
    figure = new_figure(5.4, 5.4)
    upper, lower = figure.subplots(2, 1, height_ratios=[3.4, 1], sharex=True)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    edges = np.linspace(0, 1, bins + 1)
    errors: dict[str, float] = {}
    rows = 0
    for position, (name, values) in enumerate(series.items()):
        confidence, correct = _confidence(as_floats(values), as_floats(target))
        rows = len(confidence)
        errors[name] = _draw_reliability(upper, confidence, correct, edges, name, position)
        _draw_counts(lower, confidence, edges, position, len(series))
    tidy(upper, y="accuracy", grid="both")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), aspect="auto")
    tidy(lower, x="confidence (probability of the predicted class)", y="predictions")
    lower.set_yscale("log")
    lower.set_ylim(bottom=0.7)
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.minorticks_off()
    legend(upper, columns=2)
    say(figure, _reliability_sentence(errors, rows))
    return figure


def _reliability_sentence(errors: Mapping[str, float], rows: int) -> str:
    gaps = [f"{100 * gap:.1f}{f' ({name})' if name else ''}" for name, gap in errors.items()]
    missed = f"Confidence misses accuracy by {' and '.join(gaps)} percentage points on average"
    return f"{missed}, over {rows:,} predictions"


def _confidence(probabilities: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Confidence of each prediction, and whether it is right."""
    if probabilities.ndim == 1 or probabilities.shape == target.shape:
        positive, truth = probabilities.ravel(), target.ravel()
        confidence, predicted = np.maximum(positive, 1 - positive), (positive > 0.5).astype(float)
    elif probabilities.ndim == 2:
        truth = target.ravel()
        confidence, predicted = probabilities.max(1), probabilities.argmax(1).astype(float)
    else:
        raise DataError(
            f"probabilities must be (N,), (N, C) or (N, L), got {probabilities.shape}; "
            "flatten the pixels of dense predictions to rows."
        )
    if len(truth) != len(confidence) or not len(truth):
        raise DataError(
            f"probabilities and target must have the same rows, at least one; got "
            f"{len(confidence)} and {len(truth)}."
        )
    return confidence, (predicted == truth).astype(float)


def _draw_reliability(
    axes: "Axes", confidence: Floats, correct: Floats, edges: Floats, name: str, position: int
) -> float:
    """Draw one series, and return its expected calibration error."""
    where = np.clip(np.digitize(confidence, edges[1:-1]), 0, len(edges) - 2)
    count = np.bincount(where, minlength=len(edges) - 1).astype(float)
    used = count > 0
    with np.errstate(invalid="ignore"):
        mean = np.bincount(where, confidence, len(edges) - 1) / count
        accuracy = np.bincount(where, correct, len(edges) - 1) / count
    error = float((np.abs(accuracy - mean) * count)[used].sum() / count.sum())
    low, high = wilson_interval(accuracy[used] * count[used], count[used])
    colour = COLOURS[position % len(COLOURS)]
    axes.vlines(mean[used], low, high, color=colour, alpha=_BAR_ALPHA, linewidth=_BAR_WIDTH)
    axes.plot(mean[used], accuracy[used], color=colour, linewidth=0.9, alpha=0.45)
    axes.scatter(
        mean[used],
        accuracy[used],
        s=_marker_areas(count[used]),
        color=colour,
        marker="os^Dv"[position % 5],
        linewidth=0,
        clip_on=False,
        zorder=3,
        label=f"{name}{', ' if name else ''}ECE {error:.3f}",
    )
    return error


def _marker_areas(count: Floats) -> Floats:
    """Small where one prediction is all there is, large where the bin holds most of them."""
    areas: Floats = 10 + 40 * np.log(count) / max(np.log(count.max()), 1.0)
    return areas


def _draw_counts(
    axes: "Axes", confidence: Floats, edges: Floats, position: int, series: int
) -> None:
    count, _ = np.histogram(confidence, edges)
    width = (edges[1] - edges[0]) * 0.8 / series
    centre = (edges[:-1] + edges[1:]) / 2 + (position - (series - 1) / 2) * width
    axes.bar(centre, count, width * 0.94, color=COLOURS[position % len(COLOURS)], linewidth=0)


def ood_histogram(
    in_scores: Array,
    out_scores: Mapping[str, Array],
    *,
    label: str,
    in_name: str = "test set",
    bins: int = 40,
) -> "Figure":
    """Plot the histogram of an uncertainty on known inputs against every unknown set.

    Args:
        in_scores: ``(N,)`` uncertainty of the test set; larger is less certain.
        out_scores: the same of each out-of-distribution set, by name; lengths may differ, and
            underscores in a name are shown as spaces.
        label: name and unit of the uncertainty, such as ``"mutual information (nats)"``.
        in_name: what to call the known inputs.
        bins: number of bins, >= 1.

    Returns:
        A figure of shares (each set sums to 100 %), with each set's AUROC in the legend: the chance
        that a random unknown input is less certain than a random known one.

    Raises:
        DataError: a set is empty or holds NaN.

    Example:
        >>> figure = ood_histogram([0.1, 0.2], {"rotated": [0.3, 0.4]}, label="entropy (nats)")
        >>> figure.get_suptitle()
        'Set apart from the test set by entropy: rotated clearly'
    """
    known = _scores(in_scores, in_name)
    unknown = {name.replace("_", " "): _scores(s, name) for name, s in out_scores.items()}
    figure = new_figure(6.4, 3.6 + 0.2 * len(unknown))
    axes = figure.subplots()
    low = min(values.min() for values in (known, *unknown.values()))
    high = max(values.max() for values in (known, *unknown.values()))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    _draw_shares(axes, known, edges, color=MUTED, alpha=0.4, label=f"{in_name} ({len(known):,})")
    areas: dict[str, float] = {}
    for position, (name, values) in enumerate(unknown.items()):
        areas[name] = auroc(known, values)
        colour = COLOURS[position % len(COLOURS)]
        text = f"{name} ({len(values):,}), AUROC {areas[name]:.2f}"
        _draw_shares(axes, values, edges, color=colour, alpha=BAND_ALPHA)
        _draw_shares(axes, values, edges, color=colour, histtype="step", linewidth=1.5, label=text)
    tidy(axes, x=label, y="share of the set per bin (%)")
    legend(axes, columns=1)
    say(figure, _ood_sentence(areas, label, in_name))
    return figure


def _draw_shares(axes: Any, values: Floats, edges: Floats, **look: Any) -> None:
    axes.hist(values, edges, weights=np.full(len(values), 100 / len(values)), **look)


# What an AUROC is in words; 0.5 is a coin's.
_SEPARATION = ((0.9, "clearly"), (0.75, "fairly well"), (0.6, "barely"), (0.0, "not at all"))


def _ood_sentence(areas: Mapping[str, float], label: str, in_name: str) -> str:
    what, _ = _name_and_unit(label)
    how = [
        f"{name} {next(word for least, word in _SEPARATION if value >= least)}"
        for name, value in areas.items()
    ]
    return f"Set apart from the {in_name} by {what}: {', '.join(how)}"


def _name_and_unit(label: str) -> tuple[str, str]:
    name, _, unit = label.partition(" (")
    return name, unit.rstrip(")")


def _scores(values: Array, name: str) -> Floats:
    scores = as_floats(values).ravel()
    if not len(scores) or not np.isfinite(scores).all():
        raise DataError(
            f"a histogram needs at least one score and only finite ones; {name!r} has "
            f"{len(scores)} scores, {int((~np.isfinite(scores)).sum())} of them not finite."
        )
    return scores


def most_uncertain_grid(
    images: Array,
    probabilities: Array,
    uncertainty: Array,
    target: Array,
    *,
    class_names: Sequence[str] | None = None,
    label: str = "mutual information (nats)",
) -> "Figure":
    """Show the nine inputs of which the model is least sure, with what it said and what they are.

    Args:
        images: ``(N, H, W)``, ``(N, 1 or 3, H, W)``, or ``(N, H * W)`` of square images; any range,
            each is stretched to its own.
        probabilities: ``(N, C)`` in [0, 1].
        uncertainty: ``(N,)``; larger is less certain.
        target: ``(N,)`` class numbers.
        class_names: names in place of class numbers.
        label: name and unit of the uncertainty.

    Raises:
        DataError: the images are not images, or the lengths differ.

    Example:
        >>> images = np.eye(9).reshape(9, 3, 3)
        >>> figure = most_uncertain_grid(images, np.eye(9), np.ones(9), range(9))
        >>> len(figure.axes)
        9
    """
    pictures, share = _as_images(as_floats(images)), as_floats(probabilities)
    scores, truth = as_floats(uncertainty), as_floats(target).astype(int)
    if not len(pictures) == len(share) == len(scores) == len(truth):
        raise DataError(
            f"images, probabilities, uncertainty and target must have the same rows, got "
            f"{len(pictures)}, {len(share)}, {len(scores)} and {len(truth)}."
        )
    order = np.argsort(-scores, kind="stable")[:9]
    said = share.argmax(1)
    wrong = int((said[order] != truth[order]).sum())
    what, unit = _name_and_unit(label)
    answers = [
        (
            f"said {_name(said[row], class_names)} ({100 * share[row].max():.0f} %),",
            f"is {_name(truth[row], class_names)}",
        )
        for row in order
    ]
    # All on one line or all on two, so that the pictures stand in rows.
    between = " " if max(len(" ".join(both)) for both in answers) <= _LINE else "\n"
    figure = new_figure(5.4, 6.9)
    for axes, row, both in zip(figure.subplots(3, 3).ravel(), order, answers, strict=False):
        axes.imshow(pictures[row], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        _caption(
            axes, between.join(both), f"{scores[row]:.2f} {unit}", wrong=said[row] != truth[row]
        )
    for axes in figure.axes[len(order) :]:
        axes.set_visible(False)
    verb = "is" if wrong == 1 else "are"
    count = _NUMBERS[len(order)].lower()
    say(figure, f"{_NUMBERS[wrong]} of the {count} inputs of highest {what} {verb} misread")
    return figure


def _name(number: int, class_names: Sequence[str] | None) -> str:
    name = str(class_names[number] if class_names else number)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _caption(axes: "Axes", answer: str, score: str, *, wrong: bool) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=COLOURS[1] if wrong else FAINT, linewidth=1.6 if wrong else 0.8)
    axes.set_title(answer, fontsize=9, color=COLOURS[1] if wrong else INK, pad=5)
    axes.set_xlabel(score, fontsize=8.5, color=MUTED, labelpad=4)


def _as_images(images: Floats) -> Floats:
    """Bring images to ``(N, H, W)`` or ``(N, H, W, 3)``, each stretched to [0, 1]."""
    if images.ndim == 2 and math.isqrt(images.shape[1]) ** 2 == images.shape[1]:
        side = math.isqrt(images.shape[1])
        images = images.reshape(-1, side, side)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        images = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(
            "images must be (N, H, W), (N, 1 or 3, H, W) or (N, H * W) with H = W, got "
            f"{images.shape}."
        )
    inner = tuple(range(1, images.ndim))
    low, high = images.min(inner, keepdims=True), images.max(inner, keepdims=True)
    stretched: Floats = (images - low) / np.where(high > low, high - low, 1)
    return stretched


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` whole or not at all, at 150 dpi.

    Args:
        figure: any matplotlib figure.
        path: its suffix chooses the format: ``.png``, ``.svg``, ``.pdf``.

    Raises:
        OutputError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> save_figure(new_figure(2, 2), Path(tempfile.mkdtemp()) / "blank.png").name
        'blank.png'
    """
    path = Path(path)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
    return path
