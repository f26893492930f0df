"""What a run tells of the pretraining that it began with."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stablelightning.report.section import Section
from stablelightning.report.style import COLOURS, MUTED, legend, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 6.4, 3.4
_RECORD = {
    "kind": "supervised",
    "data": "DigitsData",
    "epochs": 2,
    "kept": 2,
    "train": [1.6, 0.4],
    "validation": [1.1, 0.5],
    "loaded": {},
    "taken_over": ["body.weight"],
}


def pretrain_section(record: Mapping[str, Any], summary: str, numbers: Any) -> Section | None:
    """Make the section of the report, with the losses as its picture.

    Args:
        record: of :class:`~stablelightning.callbacks.pretrain.PretrainFirst`.
        summary: of the same, in a sentence.
        numbers: of the same, by their keys.

    Returns:
        ``None`` where nothing was done.

    Example:
        >>> section = pretrain_section(_RECORD, "pretrained by labels", {"pretrain/loss": 0.4})
        >>> section.lead, section.rows[-1]
        ('pretrained by labels', [2, 0.4, 0.5])
    """
    if not record:
        return None
    losses = [list(record[name]) for name in ("train", "validation")]
    rows = [
        [epoch + 1, *(known[epoch] if epoch < len(known) else None for known in losses)]
        for epoch in _some(record["epochs"])
    ]
    count = len(record["taken_over"])
    notes = [f"{count} parameters and buffers below the head were taken over"]
    return Section(
        "pretrain",
        "Pretraining",
        summary,
        ["epoch", "loss", "validation"],
        rows,
        pretraining_losses(record) if rows else None,
        notes,
        dict(numbers),
    )


def pretraining_losses(record: Mapping[str, Any]) -> "Figure":
    """Plot the losses over the epochs of a pretraining, and which epoch was kept.

    Args:
        record: of :class:`~stablelightning.callbacks.pretrain.PretrainFirst`.

    Raises:
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> pretraining_losses(_RECORD).axes[0].get_xlabel()
        'epoch of pretraining'
    """
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    finite: list[float] = []
    for name, label, colour in (
        ("train", "training", COLOURS[0]),
        ("validation", "validation", COLOURS[1]),
    ):
        losses = record[name]
        if losses:
            epochs = range(1, len(losses) + 1)
            axes.plot(epochs, losses, color=colour, label=label, linewidth=1.8)
            finite += [loss for loss in losses if math.isfinite(loss)]
    axes.axvline(record["kept"], color=MUTED, linewidth=0.8, linestyle=":")
    if finite and min(finite) > 0:
        axes.set_yscale("log")
    tidy(axes, x="epoch of pretraining", y="loss")
    legend(axes, columns=2)
    how = "labels" if record["kind"] == "supervised" else record["kind"]
    say(figure, f"Pretrained by {how} on {record['data']}; epoch {record['kept']} was kept")
    return figure


def _some(epochs: int) -> list[int]:
    """A few epochs of many: the first, the last, and some between."""
    step = max(1, epochs // 5)
    return sorted({*range(0, epochs, step), epochs - 1} - {-1})
