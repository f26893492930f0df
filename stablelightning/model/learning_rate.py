"""One factor on every learning rate of an optimizer and of what schedules it."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stablelightning.errors import ModelError, RecipeError

#: Entries of a parameter group that are rates: the present one, and those that schedulers leave.
GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
#: Attributes of schedulers that are rates, or lists of one for each group.
SCHEDULER_RATES = (
    *("base_lrs", "max_lrs", "min_lrs", "default_min_lr", "eta_min", "_last_lr"),
    *("eta_mins", "least_changes"),  # where groups have floors of their own, see discriminative.py
)


def scale_learning_rates(optimizer: Optimizer, schedulers: Iterable[Any], factor: float) -> None:
    """Multiply an optimizer's learning rates by a factor, now and for the rest of its schedules.

    Every group's rate, the rates that schedulers leave in groups (``initial_lr``, ``max_lr``,
    ``min_lr``, ``swa_lr``), and what they keep themselves are multiplied, through
    ``SequentialLR`` and ``ChainedScheduler``. From then on each schedule of torch gives ``factor``
    times what it would have given, in the middle of it as well as at its start, and the ratios
    between groups stay. Both changes are part of the ``state_dict`` of optimizer and scheduler.

    Floors are rates, too (``eta_min``, the ``min_lr`` of ``ReduceLROnPlateau`` and the smallest
    change that it makes): a rate that was cut below a floor would otherwise rise to it. What is no
    rate stays: momentum and betas, which ``OneCycleLR`` and ``CyclicLR`` cycle as before, weight
    decay (decoupled decay is multiplied by the rate in each step), factors and lambdas. Rates that
    a scheduler of your own keeps under other names than torch's cannot be known: one that computes
    from ``base_lrs``, or from the groups, goes on as torch's do.

    Args:
        optimizer: changed in place; rates that are tensors (``capturable``) are written in place.
        schedulers: torch schedulers, changed in place; those of other optimizers are left.
        factor: > 0 and finite.

    Raises:
        RecipeError: ``factor`` is not a positive, finite number.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import StepLR
        >>> groups = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.01}]
        >>> sgd = torch.optim.SGD(groups, lr=0.1)
        >>> schedule = StepLR(sgd, step_size=1, gamma=0.5)
        >>> scale_learning_rates(sgd, [schedule], 2.0)
        >>> sgd.step(), schedule.step()
        (None, None)
        >>> [group["lr"] for group in sgd.param_groups]
        [0.1, 0.01]
    """
    if not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        raise RecipeError(
            f"factor must be a finite number > 0, got {factor!r}; to stop learning, freeze the "
            "parameters instead."
        )
    own = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper, or the optimizer
    written: set[int] = set()  # groups may share one tensor
    for group in optimizer.param_groups:
        for name in GROUP_RATES:
            rate = group.get(name)
            if isinstance(rate, Tensor) and id(rate) not in written:
                written.add(id(rate))
                rate.detach().mul_(factor)  # a captured graph reads this very tensor
            elif isinstance(rate, int | float):
                group[name] = rate * factor
    for scheduler in unrolled(schedulers):
        if getattr(scheduler, "optimizer", own) is own:
            _scale(scheduler, factor)


def base_learning_rates(optimizer: Optimizer, schedulers: Iterable[Any]) -> list[float]:
    """The rate of every group that its schedule is written around.

    The peak of those that cycle (``OneCycleLR``, ``CyclicLR``), else the rate before any schedule
    (``initial_lr``: a warm-up begins below it), else the rate as it is.

    Args:
        optimizer: only read.
        schedulers: torch schedulers; those of other optimizers are left out.

    Raises:
        ModelError: a group has no rate that is a number; the optimizer finds its own.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import OneCycleLR
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> schedule = OneCycleLR(sgd, max_lr=0.5, total_steps=10)
        >>> round(sgd.param_groups[0]["lr"], 6), base_learning_rates(sgd, [schedule])
        (0.02, [0.5])
    """
    own = getattr(optimizer, "optimizer", optimizer)
    peaks: list[Any] = [None] * len(optimizer.param_groups)
    for scheduler in unrolled(schedulers):
        if getattr(scheduler, "optimizer", own) is own:
            peaks = vars(scheduler).get("max_lrs", peaks)
    rates = []
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        known = (peak, group.get("max_lr"), group.get("initial_lr"), group.get("lr"))
        rate = next((rate for rate in known if rate is not None), None)
        if not isinstance(rate, int | float | Tensor):
            raise ModelError(
                "a learning rate must be a number to be scaled, and a group of "
                f"{type(own).__name__} has {rate!r}; give it lr=, or let the optimizer find one."
            )
        rates.append(float(rate))
    return rates


def unrolled(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Each scheduler once, and those inside it (``SequentialLR``, ``ChainedScheduler``).

    Args:
        schedulers: any; only read.

    Example:
        >>> import torch
        >>> from torch.optim.lr_scheduler import ChainedScheduler, StepLR
        >>> step = StepLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), step_size=1)
        >>> [type(scheduler).__name__ for scheduler in unrolled([ChainedScheduler([step]), step])]
        ['ChainedScheduler', 'StepLR']
    """
    pending, seen = list(schedulers), set()
    while pending:
        scheduler = pending.pop(0)
        if id(scheduler) not in seen:
            seen.add(id(scheduler))
            yield scheduler
            pending = [*vars(scheduler).get("_schedulers", ()), *pending]


def _scale(scheduler: Any, factor: float) -> None:
    for name in SCHEDULER_RATES:
        value = vars(scheduler).get(name)
        if isinstance(value, list | tuple):
            setattr(scheduler, name, [rate * factor for rate in value])
        elif value is not None:
            setattr(scheduler, name, value * factor)
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.eps *= factor
