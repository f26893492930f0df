"""The learning-rate schedules over one training, and what 1cycle does to momentum."""

import torch
from matplotlib.figure import Figure

from stablelightning.model.schedule_plan import SchedulePlan, plan_schedule
from stablelightning.model.schedules import (
    ExponentialDecay,
    OneCycle,
    PiecewiseConstant,
    PowerDecay,
    ReduceOnPlateau,
    WarmupCosine,
    WarmupStableDecay,
)
from stablelightning.report.style import COLOURS, INK, MUTED

_STEPS = 1000
_EPOCH = 25  # steps between two looks at the validation loss


def draw() -> Figure:
    """One panel for each schedule, as its scheduler walks it."""
    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    curves = {
        "PowerDecay": lambda o: PowerDecay(o, total_steps=_STEPS),
        "ExponentialDecay": lambda o: ExponentialDecay(o, total_steps=_STEPS),
        "PiecewiseConstant": lambda o: PiecewiseConstant(o, total_steps=_STEPS),
        "WarmupCosine": lambda o: WarmupCosine(o, total_steps=_STEPS),
        "WarmupStableDecay": lambda o: WarmupStableDecay(o, total_steps=_STEPS),
        "OneCycle": lambda o: OneCycle(o, total_steps=_STEPS),
        "OneCycle, three phases": lambda o: OneCycle(
            o, total_steps=_STEPS, peak=0.4, three_phase=True
        ),
    }
    for axes, (name, make) in zip(panels.flat, curves.items(), strict=False):
        plan = _plan(make)
        style = "steps-post" if "Piecewise" in name else "default"
        axes.plot(plan.steps, plan.rates[0], color=COLOURS[0], linewidth=1.6, drawstyle=style)
        if plan.moves_momentum:
            axes.plot(plan.steps, plan.momenta[0], color=COLOURS[1], linewidth=1.2)
            axes.text(980, 0.99, "momentum", color=COLOURS[1], ha="right", va="bottom", fontsize=8)
        axes.set_title(name, loc="left", color=INK, fontsize=9)
    last = panels.flat[-1]
    rates, losses = _plateau()
    last.plot(rates, color=COLOURS[0], linewidth=1.6, drawstyle="steps-post")
    last.plot(losses, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
    last.text(30, 0.36, "validation loss", color=MUTED, ha="left", va="bottom", fontsize=8)
    last.set_title("ReduceOnPlateau", loc="left", color=INK, fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("learning rate")
    for axes in panels[1]:
        axes.set_xlabel("step")
    last.set_xlim(0, _STEPS)
    last.set_ylim(0, 1.09)
    last.set_xticks([0, 500, 1000])
    return figure


def _optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)


def _plan(make) -> SchedulePlan:
    optimizer = _optimizer()
    return plan_schedule(optimizer, make(optimizer), _STEPS)


def _plateau() -> tuple[list[float], list[float]]:
    """A loss that stands still three times, each time lower, and the rate that it leads to."""
    optimizer = _optimizer()
    schedule = ReduceOnPlateau(optimizer, patience=3)
    rates, losses = [], []
    for step in range(_STEPS):
        rate = optimizer.param_groups[0]["lr"]
        # What is left to learn at a rate falls to a floor that is in proportion to it.
        floor = 0.25 + 0.35 * rate
        losses.append(floor + (losses[-1] - floor) * 0.985 if losses else 1.0)
        rates.append(rate)
        if (step + 1) % _EPOCH == 0:
            schedule.step(round(losses[-1], 2))
    return rates, losses
