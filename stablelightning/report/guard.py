"""The picture and the section of a guarded run: the loss, and where the guard stepped in."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np

from stablelightning.errors import DataError
from stablelightning.report.events import (
    DROPPED,
    GAVE_UP,
    ROLLED_BACK,
    SKIPPED,
    Event,
    EventLog,
)
from stablelightning.report.section import Section
from stablelightning.report.statistics import Floats
from stablelightning.report.style import COLOURS, MUTED, legend, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Rows of the section's table; all events are in the file and in W&B.
_MOST_ROWS = 20

#: What is drawn of an event: its mark and its colour.
_MARKS = {SKIPPED: ("v", COLOURS[1]), DROPPED: ("^", COLOURS[4])}

_SHOWN = ("step", "decision", "quantity", "value", "cause", "module", "indices")


def guard_timeline(
    steps: Sequence[int], losses: Sequence[float], events: Sequence[Event]
) -> "Figure":
    """Plot the loss over the steps, with what was skipped and where the run went back.

    Args:
        steps: ``(n,)``, not falling except where the run was rolled back.
        losses: ``(n,)`` finite.
        events: as :class:`~stablelightning.report.events.EventLog` keeps them.

    Returns:
        A figure; what was skipped for a value that is not finite is marked at its upper edge.

    Raises:
        DataError: there is neither a loss nor an event, or the lengths differ.

    Example:
        >>> event = {"step": 1, "decision": "skipped", "quantity": "loss", "value": "nan"}
        >>> figure = guard_timeline([0, 1, 2], [2.0, 1.5, 1.0], [event])
        >>> figure.get_suptitle()
        '1 step skipped'
    """
    if len(steps) != len(losses) or not (len(steps) or events):
        raise DataError(
            f"a timeline needs as many steps as losses, and one of them or an event, got "
            f"{len(steps)} steps, {len(losses)} losses and {len(events)} events."
        )
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    values = np.asarray(losses, dtype=float)
    spikes = [v for v in (_value(event) for event in events) if math.isfinite(v)]
    if len(values) and min([*values.tolist(), *spikes]) > 0:
        axes.set_yscale("log")
    axes.plot(*_broken(steps, values), color=COLOURS[0], linewidth=1.1, label="loss")
    _mark_skips(axes, events)
    for kind, style in ((ROLLED_BACK, "--"), (GAVE_UP, "-")):
        places = [event["step"] for event in events if event.get("decision") == kind]
        for number, place in enumerate(places):
            label = "" if number else kind
            axes.axvline(place, color=MUTED, linestyle=style, linewidth=1.0, zorder=1, label=label)
    tidy(axes, x="step", y="loss")
    legend(axes, columns=5)
    say(figure, counted(events))
    return figure


def counted(events: Sequence[Event]) -> str:
    """How many decisions of each kind there were, in words.

    Example:
        >>> counted([{"decision": "skipped"}] * 2 + [{"decision": "rolled back"}])
        '2 steps skipped, 1 rolled back'
        >>> counted([])
        'no step skipped'
    """
    return in_words(Counter(str(event.get("decision", "event")) for event in events))


def in_words(counts: Counter[str]) -> str:
    """The same of numbers that were counted elsewhere."""
    if not counts:
        return "no step skipped"
    words = {SKIPPED: "step", DROPPED: "micro-batch", ROLLED_BACK: "", GAVE_UP: ""}
    parts = []
    for name, number in counts.items():
        word = words.get(name, "")
        plural = ("es" if word.endswith("h") else "s") if number != 1 and word else ""
        parts.append(" ".join(filter(None, [str(number), word + plural, name])))
    return ", ".join(parts).replace("1 gave up", "gave up")


def guard_section(trainer: L.Trainer, model: L.LightningModule) -> Section | None:
    """What the guard of a run has to say; ``None`` where there is no guard.

    Args:
        trainer: after training, with a callback that keeps an ``EventLog``.
        model: not looked at.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> guard_section(trainer, L.LightningModule()) is None
        True
    """
    log = event_log(trainer)
    if log is None:
        return None
    counts = log.counts
    numbers = {
        "guard/skipped": float(counts[SKIPPED] + counts[DROPPED]),
        "guard/rollbacks": float(counts[ROLLED_BACK]),
    }
    lead = f"{in_words(counts)} in {trainer.global_step:,} steps"
    if not log.events:
        return Section("guard", "Guard", lead, numbers=numbers)
    shown = log.events[-_MOST_ROWS:]
    used = [name for name in _SHOWN if any(event.get(name) is not None for event in shown)]
    rows = [[_cell(event.get(name)) for name in used] for event in shown]
    notes = []
    if counts.total() > len(shown):
        notes.append(f"the last {len(shown)} of {counts.total()} events; events.jsonl has all")
    figure = guard_timeline(log.steps, log.losses, log.events)
    return Section("guard", "Guard", lead, used, rows, figure, notes, numbers)


def event_log(trainer: L.Trainer) -> EventLog | None:
    """The log that one of the Trainer's callbacks keeps, if any does."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept: list[Any] = [value for callback in callbacks for value in vars(callback).values()]
    return next((value for value in kept if isinstance(value, EventLog)), None)


def _mark_skips(axes: "Axes", events: Sequence[Event]) -> None:
    """At the value for which it was skipped, or at the edge where that is none of the axis."""
    for kind, (mark, colour) in _MARKS.items():
        found = [event for event in events if event.get("decision") == kind]
        look: dict[str, Any] = {
            "marker": mark,
            "color": colour,
            "s": 26,
            "linewidth": 0,
            "zorder": 3,
        }
        values = [(e["step"], _value(e)) for e in found]
        inside = [pair for pair in values if math.isfinite(pair[1])]
        outside = [step for step, value in values if not math.isfinite(value)]
        label = kind
        if inside:
            axes.scatter(*map(list, zip(*inside, strict=True)), label=label, **look)
            label = ""
        if outside:
            edge = axes.get_xaxis_transform()  # 1 is the upper edge
            axes.scatter(
                outside, [1.0] * len(outside), transform=edge, clip_on=False, label=label, **look
            )


def _value(event: Event) -> float:
    """The loss for which it was skipped; a gradient's norm has no place on the loss's axis."""
    value = event.get("value") if event.get("quantity") == "loss" else None
    return float(value) if isinstance(value, int | float) else math.nan


def _broken(steps: Sequence[int], values: Floats) -> tuple[Floats, Floats]:
    """With a gap wherever the run went back."""
    places = np.asarray(steps, dtype=float)
    back = np.flatnonzero(np.diff(places) < 0) + 1
    return np.insert(places, back, math.nan), np.insert(values, back, math.nan)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        more = ", ..." if len(value) > 4 else ""
        return ", ".join(map(str, value[:4])) + more
    return value
