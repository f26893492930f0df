"""How long a schedule is, how often it steps, and whether that is as long as training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, Literal

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from stablelightning.errors import RecipeError

Interval = Literal["step", "epoch"]

#: Asked by a schedule that was not told its length, while somebody configures optimizers.
_TRAINING: ContextVar[Callable[[], int] | None] = ContextVar("steps of training", default=None)

_MOST_PARTS = 100  # of a schedule within a schedule; one that holds itself has no end


@contextmanager
def training_of(steps: Callable[[], int]) -> Iterator[None]:
    """Let schedules that are made meanwhile take their length from training.

    Args:
        steps: gives the number of steps of training; called by a schedule that was not told.

    Example:
        >>> with training_of(lambda: 640):
        ...     total_steps(None)
        640
    """
    token = _TRAINING.set(steps)
    try:
        yield
    finally:
        _TRAINING.reset(token)


def total_steps(given: int | None) -> int:
    """The length of a schedule: what was given, or else that of the training around it.

    Args:
        given: steps, >= 1; ``None`` for those of training.

    Returns:
        A whole number >= 1.

    Raises:
        RecipeError: it is no positive whole number, or nobody knows how long training is.

    Example:
        >>> total_steps(100)
        100
    """
    if given is None:
        ask = _TRAINING.get()
        if ask is None:
            raise RecipeError(
                "total_steps must be given where no StableMixin fills it from its Trainer, got "
                "None; pass total_steps=self.trainer.estimated_stepping_batches."
            )
        return max(ask(), 1)
    # Lightning gives infinity where training has no end, and floats hide in configurations.
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise RecipeError(
            f"total_steps must be a whole number >= 1, got {given!r}; "
            "training without an end needs max_steps or max_epochs in the Trainer."
        )
    return given


def interval_of(scheduler: Any) -> Interval:
    """Whether a scheduler is made to step with every optimizer step, or with every epoch.

    Those of :mod:`stablelightning.model.schedules` say so themselves. Of torch's own ``OneCycleLR``
    and ``CyclicLR`` count steps; all others count epochs, as in torch's documentation.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> interval_of(StepLR(sgd, 10)), interval_of(CyclicLR(sgd, 0.01, 0.1))
        ('epoch', 'step')
    """
    said = getattr(scheduler, "interval", None)
    if said in ("step", "epoch"):
        return "step" if said == "step" else "epoch"
    parts = _parts(scheduler)
    counts_steps = any(isinstance(part, OneCycleLR | CyclicLR) for part in parts)
    counts_steps |= any(getattr(part, "interval", None) == "step" for part in parts)
    return "step" if counts_steps else "epoch"


def schedule_config(scheduler: Any, *, monitor: str = "val/loss") -> dict[str, Any]:
    """What Lightning is to be told of a scheduler, for a ``configure_optimizers`` of your own.

    Args:
        scheduler: of :mod:`stablelightning.model.schedules`, or torch's.
        monitor: the logged key that a plateau watches which does not name one itself.

    Returns:
        The value of ``"lr_scheduler"``: scheduler, interval and monitor.

    Example:
        >>> import torch
        >>> from stablelightning.model.schedules import WarmupCosine
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule_config(WarmupCosine(sgd, total_steps=100))["interval"]
        'step'
    """
    watched = getattr(scheduler, "monitor", None) or monitor
    return {"scheduler": scheduler, "interval": interval_of(scheduler), "monitor": watched}


def check_length(scheduler: Any, training: int, *, unit: str = "step") -> str | None:
    """Compare a schedule with the training that it is for.

    Args:
        scheduler: of :mod:`stablelightning.model.schedules`, or torch's.
        training: how often the scheduler will step in training.
        unit: with what it steps, for the message: ``"step"`` or ``"epoch"``.

    Returns:
        What is to be warned of, ``None`` if nothing is.

    Raises:
        RecipeError: it ends before training does, and nothing sensible follows.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> print(check_length(StepLR(sgd, 30), 10, unit="epoch"))
        StepLR lowers the rate after 30 epochs, and training has 10: the rate never changes.
        >>> check_length(StepLR(sgd, 5), 10, unit="epoch") is None
        True
    """
    if training < 1:
        return None
    spans = _spans(scheduler, training)
    found = [_disagreement(part, span, f"{unit}s") for part, span in spans if span > 0]
    return next((words for words in found if words is not None), None)


def _disagreement(scheduler: Any, training: int, units: str) -> str | None:
    name = type(scheduler).__name__
    length = getattr(scheduler, "total_steps", None)
    if isinstance(length, int) and length < training:
        raise RecipeError(
            f"total_steps of {name} must be the {training} {units} of training, got {length}: "
            "nothing is planned for those after it; leave total_steps out, and it is filled in."
        )
    if isinstance(length, int) and length > training:
        done = training / length
        return (
            f"{name} is planned for {length} {units}, and training has {training}: it ends at "
            f"{done:.0%} of the schedule, before the rate is low; leave total_steps out, and it is "
            "filled in."
        )
    if isinstance(scheduler, CosineAnnealingLR) and scheduler.T_max < training:
        return (
            f"{name} falls for {scheduler.T_max} {units} (T_max), and training has {training}: "
            "after that the rate rises again; set T_max to the length of training."
        )
    if isinstance(scheduler, CosineAnnealingLR):
        return _never_there(name, "comes down", scheduler.T_max, training, units)
    if isinstance(scheduler, LinearLR | PolynomialLR):
        return _never_there(name, "reaches its last rate", scheduler.total_iters, training, units)
    if isinstance(scheduler, StepLR) and scheduler.step_size >= training:
        return (
            f"{name} lowers the rate after {scheduler.step_size} {units}, and training has "
            f"{training}: the rate never changes."
        )
    if isinstance(scheduler, MultiStepLR) and max(scheduler.milestones, default=0) >= training:
        return (
            f"{name} has a milestone at {max(scheduler.milestones)} {units}, and training has "
            f"{training}: it is never reached."
        )
    return None


def _never_there(name: str, what: str, end: int, training: int, units: str) -> str | None:
    if end <= training:
        return None
    return f"{name} {what} in {end} {units}, and training has {training}: it never gets there."


def _parts(scheduler: Any) -> list[Any]:
    """The scheduler, and those inside of it."""
    return [part for part, _ in _spans(scheduler, 0)]


def _spans(scheduler: Any, training: int) -> list[tuple[Any, int]]:
    """The same, each with how often it steps: a part of a sequence lasts to the next milestone."""
    pending = [(scheduler, training)]
    found: list[tuple[Any, int]] = []
    while pending and len(found) < _MOST_PARTS:
        part, span = pending.pop(0)
        found.append((part, span))
        inside = list(getattr(part, "_schedulers", ()))
        if isinstance(part, SequentialLR):
            ends = [0, *(min(milestone, span) for milestone in part._milestones), span]
            pending += zip(inside, (b - a for a, b in pairwise(ends)), strict=False)
        elif isinstance(part, ChainedScheduler):
            pending += [(each, span) for each in inside]
    return found
