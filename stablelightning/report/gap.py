"""The gap between training and validation loss in a run's report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stablelightning.model.gap import Gap
from stablelightning.report.section import Section
from stablelightning.report.style import COLOURS, legend, new_figure, say, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gap_curve(gaps: Sequence[Gap]) -> "Figure":
    """Plot both losses, without dropout, over the steps.

    Args:
        gaps: in order; at least one.

    Example:
        >>> figure = gap_curve([Gap(9, 0.5, 0.6), Gap(19, 0.3, 0.5)])
        >>> figure.axes[0].get_ylabel()
        'loss, without dropout'
    """
    figure = new_figure(6.4, 3.1)
    axes = figure.subplots()
    steps = [gap.step for gap in gaps]
    train, validation = [g.train for g in gaps], [g.validation for g in gaps]
    marker = "o" if len(gaps) == 1 else None
    axes.plot(steps, validation, color=COLOURS[1], marker=marker, label="validation")
    axes.plot(steps, train, color=COLOURS[0], marker=marker, label="training")
    axes.fill_between(steps, train, validation, color=COLOURS[1], alpha=0.12, linewidth=0)
    if min(train + validation) > 0:
        axes.set_yscale("log")
    tidy(axes, x="step", y="loss, without dropout")
    legend(axes, columns=2)
    say(
        figure,
        f"At the end the validation loss is {gaps[-1].validation:.3g}, "
        f"the training loss {gaps[-1].train:.3g}",
    )
    return figure


def gap_section(gaps: Sequence[Gap], advice: Sequence[str]) -> Section | None:
    """What a run tells of its gap.

    Args:
        gaps: in order; without any there is nothing to tell.
        advice: sentences.

    Example:
        >>> section = gap_section([Gap(9, 0.5, 0.6)], [])
        >>> section.lead
        'measured alike, the validation loss is 0.6 and the training loss 0.5: nothing to advise'
    """
    if not gaps:
        return None
    last = gaps[-1]
    said = "" if advice else ": nothing to advise"
    return Section(
        name="gap",
        title="Training against validation loss",
        lead=f"measured alike, the validation loss is {last.validation:.3g} and the training loss "
        f"{last.train:.3g}{said}",
        figure=gap_curve(gaps),
        notes=list(advice),
        numbers={"regularize/gap": last.value, "regularize/train": last.train},
    )
