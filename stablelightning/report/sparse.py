"""What is told of a sparse model: what each layer kept, when, at what cost, in how few bytes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stablelightning.errors import DataError
from stablelightning.model.prune import LayerSparsity, total_sparsity
from stablelightning.report.section import Section
from stablelightning.report.style import (
    COLOURS,
    FAINT,
    INK,
    MUTED,
    new_figure,
    say,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Layers whose names still fit beside the bars.
_MOST_NAMES = 28
_LETTERS = 26
_FEWEST_BARS = 6

#: Of several scores the one to draw: the first that holds one of these words, in their order.
_WORDS = ("acc", "f1", "rmse", "loss")


def chosen_score(scores: Mapping[str, float]) -> str | None:
    """Which of the scores of a validation stands for it: an accuracy, before an error or a loss.

    Args:
        scores: by name.

    Example:
        >>> chosen_score({"val/loss": 0.1, "val/accuracy": 0.9}), chosen_score({})
        ('val/accuracy', None)
    """
    for word in _WORDS:
        for name in scores:
            if word in name.lower():
                return name
    return next(iter(scores), None)


def sparsity_section(
    layers: Sequence[LayerSparsity],
    *,
    changes: Sequence[Mapping[str, Any]] = (),
    validations: Sequence[Mapping[str, Any]] = (),
    before: Mapping[str, float] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Section:
    """The part of a run's report on what was pruned.

    Args:
        layers: exact counts of the model as it is now.
        changes: ``step`` and ``sparsity`` of each change of the masks.
        validations: ``step``, ``sparsity`` and ``scores`` of each validation.
        before: scores of the last validation before anything was pruned.
        sizes: bytes on disk, as :func:`~stablelightning.model.sparse_file.sizes_on_disk` gives.

    Raises:
        DataError: there are no layers.

    Example:
        >>> section = sparsity_section([LayerSparsity("fc", (2, 5), 10, 9)])
        >>> section.rows
        [['fc', '2 x 5', 10, 9, '90.00%'], ['all', '', 10, 9, '90.00%']]
    """
    if not layers:
        raise DataError("a report on sparsity must have layers, got none.")
    weights, zeros = (sum(getattr(a, name) for a in layers) for name in ("weights", "zeros"))
    total = total_sparsity(layers)
    last = validations[-1]["scores"] if validations else {}
    name = chosen_score(last)
    lead = f"{zeros:,} of {weights:,} prunable weights are exactly zero ({total:.2%})"
    if name and before and name in before:
        lead += (
            f"; {name} was {before[name]:.4g} when pruning began and {last[name]:.4g} at the end"
        )
    rows = [
        [a.layer, " x ".join(map(str, a.shape)), a.weights, a.zeros, f"{a.sparsity:.2%}"]
        for a in [*layers, LayerSparsity("all", (), weights, zeros)]
    ]
    numbers = {"sparse/sparsity": total}
    notes = []
    if sizes:
        numbers |= {f"sparse/bytes_{kind}": float(size) for kind, size in sizes.items()}
        notes.append(
            "on disk the weights take "
            + ", ".join(
                f"{_size(size)} {kind.replace('_', ' and ')}" for kind, size in sizes.items()
            )
            + "; stablelightning.model.sparse_file.save_sparse writes the sparse one"
        )
    for name, value in (before or {}).items():
        numbers[f"sparse/{name}_before"] = value
    for name, value in last.items():
        numbers[f"sparse/{name}_after"] = value
    columns = ["layer", "shape", "weights", "zeros", "sparsity"]
    figure = sparsity_figure(layers, changes=changes, validations=validations)
    return Section("sparsity", "Sparsity", lead, columns, rows, figure, notes, numbers)


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def sparsity_figure(
    layers: Sequence[LayerSparsity],
    *,
    changes: Sequence[Mapping[str, Any]] = (),
    validations: Sequence[Mapping[str, Any]] = (),
) -> "Figure":
    """Plot how sparsity grew and what it did to the validation, and what each layer kept.

    Args:
        layers: exact counts, from input to output.
        changes: ``step`` and ``sparsity`` of each change of the masks; without any, the layers
            stand alone.
        validations: ``step``, ``sparsity`` and ``scores`` of each validation.

    Example:
        >>> figure = sparsity_figure(
        ...     [LayerSparsity("fc", (2, 5), 10, 9)], changes=[{"step": 3, "sparsity": 0.9}]
        ... )
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['zeros', '']
    """
    height = min(max(3.0, 1.3 + 0.2 * len(layers)), 7.5)
    figure = new_figure(7.6 if changes else 5.0, height)
    name = next((chosen_score(v["scores"]) for v in validations[::-1] if v["scores"]), None)
    if not changes:
        _draw_layers(figure.subplots(), layers)
    elif name is None:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _draw_changes(left, changes, _last_step(changes, validations))
        _draw_layers(right, layers)
    else:
        top, bottom, right = _three(figure)
        _draw_scores(top, validations, name)
        _draw_changes(bottom, changes, _last_step(changes, validations))
        top.set_xlim(bottom.get_xlim())
        top.tick_params(labelbottom=False)
        _draw_layers(right, layers)
    weights = sum(layer.weights for layer in layers)
    when = f", from step {changes[-1]['step']:,} on" if changes else ""
    say(figure, f"{total_sparsity(layers):.1%} of {weights:,} weights are zero{when}")
    return figure


def _three(figure: "Figure") -> "tuple[Axes, Axes, Axes]":
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1))
    return (
        figure.add_subplot(grid[0, 0]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[:, 1]),
    )


def _last_step(
    changes: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]
) -> int:
    return max(int(entry["step"]) for entry in (*changes, *validations))


def _draw_changes(axes: "Axes", changes: Sequence[Mapping[str, Any]], last: int) -> None:
    steps = [0, *(change["step"] for change in changes), last]
    shares = [0.0, *(change["sparsity"] for change in changes), changes[-1]["sparsity"]]
    axes.step(steps, np.asarray(shares) * 100, where="post", color=COLOURS[1], linewidth=1.6)
    axes.set_ylim(0, 100)
    axes.set_xlim(0, last)
    axes.yaxis.set_major_formatter("{x:.0f}%")
    tidy(axes, x="optimizer step", y="zeros")


def _draw_scores(axes: "Axes", validations: Sequence[Mapping[str, Any]], name: str) -> None:
    known = [v for v in validations if name in v["scores"]]
    steps, values = [v["step"] for v in known], [v["scores"][name] for v in known]
    axes.plot(steps, values, color=COLOURS[0], linewidth=1.6, marker="o", markersize=2.5)
    tidy(axes, y=name)


def _draw_layers(axes: "Axes", layers: Sequence[LayerSparsity]) -> None:
    rows = np.arange(len(layers))
    kept = np.array([100 * (1 - layer.sparsity) for layer in layers])
    axes.barh(rows, 100, color=FAINT, height=0.72)
    axes.barh(rows, kept, color=COLOURS[0], height=0.72)
    every = -(-len(layers) // _MOST_NAMES)
    shown = rows[::every]
    names = [layers[row].layer for row in shown]
    short = [name if len(name) <= _LETTERS else f"...{name[3 - _LETTERS :]}" for name in names]
    tidy(axes, x="weights kept", grid="")
    axes.set_yticks(shown.tolist(), labels=short, fontsize=7.5 if len(layers) > 12 else 8.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:.0f}%")
    axes.set_xlim(0, 100)
    # The input on top, as one reads a network; few bars are no thicker than many.
    axes.set_ylim(max(len(layers), _FEWEST_BARS) - 0.5, -0.5)
    axes.spines[["left", "bottom"]].set_visible(False)
    if every == 1:
        for row, layer, share in zip(rows, layers, kept, strict=True):
            text = f"{share:.1f}% of {layer.weights:,}"
            inside = share < 45
            axes.text(
                share + 1.5 if inside else share - 1.5,
                float(row),
                text,
                va="center",
                ha="left" if inside else "right",
                fontsize=7.5,
                color=INK if inside else "white",
            )
    axes.tick_params(axis="x", colors=MUTED, labelcolor=INK)
