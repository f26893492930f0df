"""The plan of a schedule, drawn and told: rates, and momentum, over the steps of training."""

from typing import TYPE_CHECKING

import numpy as np

from stablelightning.errors import DataError
from stablelightning.model.schedule_plan import SchedulePlan, largest
from stablelightning.report.section import Section
from stablelightning.report.statistics import Floats
from stablelightning.report.style import (
    BAND_ALPHA,
    COLOURS,
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

#: Groups that get a line of their own; more are a band from the smallest to the largest rate.
_MOST_LINES = 4
#: Where half of training is spent below such a share of the largest rate, powers of ten are drawn.
_LOW = 0.01
_SMALLEST = 1e-12  # a rate of zero, on an axis of powers of ten


def schedule_plot(plan: SchedulePlan, *, stopped: int | None = None) -> "Figure":
    """Plot the rates over the steps, and momentum underneath where it moves too.

    Args:
        plan: of one schedule.
        stopped: the step at which training ended, marked if it is before the plan's end.

    Raises:
        DataError: the plan has no steps.

    Example:
        >>> import torch
        >>> from stablelightning.model.schedule_plan import plan_schedule
        >>> from stablelightning.model.schedules import OneCycle
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> figure = schedule_plot(plan_schedule(sgd, OneCycle(sgd, total_steps=50), 50))
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['learning rate', 'momentum']
    """
    if not plan.steps:
        raise DataError("a schedule needs at least one step to be drawn, got none.")
    both = plan.moves_momentum
    figure = new_figure(7.2, 4.4 if both else 3.2)
    panels = figure.subplots(2 if both else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_rates(panels[0], plan)
    tidy(panels[0], x="" if both else "step", y="learning rate")
    if both:
        lines = np.unique(np.asarray(plan.momenta), axis=0)
        for line in lines:
            panels[1].plot(plan.steps, line, color=COLOURS[2], linewidth=1.6)
        tidy(panels[1], x="step", y="momentum")
    for axes in panels:
        axes.set_xlim(0, max(plan.training - 1, 1))
        if stopped is not None and stopped < plan.training:
            axes.axvline(stopped, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    if stopped is not None and stopped < plan.training:
        _name_the_end(panels[0], stopped, plan.training)
    say(figure, schedule_sentence(plan))
    return figure


def schedule_sentence(plan: SchedulePlan) -> str:
    """Say what a schedule does, in one sentence without a full stop.

    Example:
        >>> plan = SchedulePlan("WarmupCosine", ("0",), (0, 1, 2), ((0.1, 1.0, 0.5),), (), 3)
        >>> schedule_sentence(plan)
        'WarmupCosine over 3 steps: from 0.1 up to 1 at step 1, and down to 0.5'
    """
    rates = _largest_group(plan)
    place, top = largest(rates)
    at = plan.steps[place]
    head = f"{plan.name} over {plan.training:,} steps: "
    if plan.waits is not None:
        return f"{head}{rates[0]:.3g} until {plan.waits} stands still"
    if len(set(rates)) == 1:
        return f"{head}{rates[0]:.3g} throughout"
    if top == rates[0]:
        return f"{head}from {rates[0]:.3g} down to {rates[-1]:.3g}"
    down = f", and down to {rates[-1]:.3g}" if rates[-1] < top else ""
    return f"{head}from {rates[0]:.3g} up to {top:.3g} at step {at:,}{down}"


def schedule_section(
    plan: SchedulePlan, *, stopped: int | None = None, notes: list[str] | None = None
) -> Section:
    """What a schedule will do, or would have done, as a part of a page or a report.

    Args:
        plan: of one schedule.
        stopped: the step at which training ended; ``None`` before training.
        notes: what else is to be known.

    Example:
        >>> plan = SchedulePlan("StepLR", ("0",), (0, 1), ((1.0, 0.1),), (), 2)
        >>> schedule_section(plan).rows
        [['0', 1.0, 1.0, 0, 0.1]]
    """
    rows = []
    for name, rates in zip(plan.groups, plan.rates, strict=True):
        place, top = largest(rates)
        rows.append([name, rates[0], top, plan.steps[place], rates[-1]])
    said = list(notes or [])
    numbers = {"schedule/steps_planned": float(plan.training)}
    if not plan.complete:
        said.append(f"only the first {plan.steps[-1] + 1:,} steps were looked at")
    if stopped is not None:
        numbers["schedule/steps_taken"] = float(stopped)
        if stopped < plan.training and plan.waits is None:
            rate = np.interp(stopped, plan.steps, _largest_group(plan))
            said.append(
                f"training ended at step {stopped:,} of {plan.training:,}, at a rate of "
                f"{rate:.3g}: the schedule had not come to its end"
            )
    return Section(
        "schedule",
        "Learning-rate schedule",
        schedule_sentence(plan),
        ["group", "first rate", "largest", "at step", "last"],
        rows,
        # What a plateau will do nobody knows: a level line would say that it does nothing.
        schedule_plot(plan, stopped=stopped) if plan.waits is None else None,
        said,
        numbers,
    )


def _largest_group(plan: SchedulePlan) -> tuple[float, ...]:
    return max(plan.rates, key=max)


def _draw_rates(axes: "Axes", plan: SchedulePlan) -> None:
    rates = np.asarray(plan.rates, dtype=float)
    lines, first = np.unique(rates, axis=0, return_index=True)
    steps, style = np.asarray(plan.steps), _draw_style(rates)
    if len(lines) <= _MOST_LINES:
        for colour, (line, group) in zip(
            COLOURS, sorted(zip(lines, first, strict=True), key=lambda x: x[1]), strict=False
        ):
            axes.plot(
                steps, line, color=colour, linewidth=1.6, drawstyle=style, label=_label(plan, group)
            )
        if len(lines) > 1:
            legend(axes, columns=len(lines))
    else:
        low, high = lines.min(axis=0), lines.max(axis=0)
        axes.fill_between(steps, low, high, color=COLOURS[0], alpha=BAND_ALPHA, linewidth=0)
        for line in lines:
            axes.plot(steps, line, color=COLOURS[0], linewidth=0.8, drawstyle=style)
    top = rates.max()
    if top > 0 and np.median(rates.max(axis=0)) < _LOW * top:
        axes.set_yscale("log")
        axes.set_ylim(max(rates[rates > 0].min(), _SMALLEST * top) / 2, top * 2)
    else:
        axes.set_ylim(0, top * 1.05 if top > 0 else 1.0)


def _draw_style(rates: Floats) -> str:
    """Jumps are drawn as jumps."""
    changes = np.count_nonzero(np.diff(rates, axis=1), axis=1).max(initial=0)
    return "steps-post" if changes < rates.shape[1] / 2 else "default"


def _label(plan: SchedulePlan, group: int) -> str:
    alike = [n for n, rates in enumerate(plan.rates) if rates == plan.rates[group]]
    more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
    return f"{plan.groups[group]}{more}"


def _name_the_end(axes: "Axes", stopped: int, training: int) -> None:
    left = stopped > 0.7 * training
    axes.annotate(
        "training ended",
        (stopped, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom",  # above the panel, where no curve is
        fontsize=8.5,
        color=INK,
    )
