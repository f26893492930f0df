"""What a schedule will do to the rates of an optimizer, told without touching either."""

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

#: Steps that are walked one by one (about ten microseconds each); longer schedules are looked at in
#: places where their class gives a rate from the number of the step alone, and cut short elsewhere.
MOST_STEPS = 50_000
#: Places that are looked at in a long one: more than a picture is wide.
_PLACES = 2_000


@dataclass(frozen=True)
class SchedulePlan:
    """The rates of an optimizer's groups over the steps of training.

    Args:
        name: class of the schedule.
        groups: names of the groups, by their number where they have none.
        steps: at which the rates are known, from 0.
        rates: of each group, at each of these steps.
        momenta: of each group likewise: momentum, or the first beta; empty without either.
        training: steps of the whole training.
        waits: the metric that it waits for, which nobody knows beforehand; ``None`` for none.
    """

    name: str
    groups: tuple[str, ...]
    steps: tuple[int, ...]
    rates: tuple[tuple[float, ...], ...]
    momenta: tuple[tuple[float, ...], ...]
    training: int
    waits: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all of training is covered."""
        return self.steps[-1] >= self.training - 1

    @property
    def moves_momentum(self) -> bool:
        """Whether momentum changes on the way."""
        return any(len(set(momenta)) > 1 for momenta in self.momenta)


def plan_schedule(
    optimizer: Optimizer,
    scheduler: Any,
    training: int,
    *,
    steps_per_tick: int = 1,
    waits: str | None = None,
) -> SchedulePlan:
    """Walk a copy of a schedule over a stand-in for its optimizer, and note the rates.

    Args:
        optimizer: whose groups' settings are copied; it is not changed, its parameters not read.
        scheduler: over it, where training begins; not changed.
        training: optimizer steps of training, >= 1.
        steps_per_tick: optimizer steps for each step of the schedule: those of an epoch where it
            counts epochs.
        waits: the metric that a plateau watches. Its rate is the one that holds until it is cut.

    Example:
        >>> from stablelightning.model.schedules import ExponentialDecay
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> plan = plan_schedule(sgd, ExponentialDecay(sgd, total_steps=4, final=0.0001), 4)
        >>> [round(rate, 6) for rate in plan.rates[0]], sgd.param_groups[0]["lr"]
        ([1.0, 0.1, 0.01, 0.001], 1.0)
    """
    stand_in = _StandIn(optimizer)
    clone = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    places = _places(clone, training, steps_per_tick)
    rates: list[list[float]] = []
    momenta: list[list[float]] = []
    with warnings.catch_warnings():
        # torch counts the optimizer's steps, and a stand-in takes none.
        warnings.simplefilter("ignore")
        for place in places:
            _bring(clone, place // steps_per_tick)
            rates.append([float(group["lr"]) for group in stand_in.param_groups])
            momenta.append(_momenta(stand_in))
    return SchedulePlan(
        name=type(scheduler).__name__,
        groups=tuple(str(g.get("name", n)) for n, g in enumerate(stand_in.param_groups)),
        steps=tuple(places),
        rates=tuple(zip(*rates, strict=True)),
        momenta=tuple(zip(*momenta, strict=True)) if all(momenta) else (),
        training=training,
        waits=waits,
    )


class _StandIn(Optimizer):
    """The settings of an optimizer's groups, over numbers that nobody trains."""

    def __init__(self, optimizer: Optimizer) -> None:
        settings = [
            {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
            for group in optimizer.param_groups
        ]
        super().__init__([{"params": [torch.zeros(1)], **s} for s in settings], {})
        self.defaults = dict(optimizer.defaults)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Nothing moves."""


def _places(scheduler: Any, training: int, steps_per_tick: int) -> list[int]:
    if training // steps_per_tick <= MOST_STEPS and training <= MOST_STEPS:
        return list(range(training))
    if _jumps(scheduler):
        return sorted({round(n * (training - 1) / (_PLACES - 1)) for n in range(_PLACES)})
    covered = min(training, MOST_STEPS * steps_per_tick)
    return list(range(0, covered, max(steps_per_tick, covered // _PLACES)))


def _jumps(scheduler: Any) -> bool:
    return isinstance(scheduler, LambdaLR | OneCycleLR)


def _bring(scheduler: Any, tick: int) -> None:
    """Let a schedule be where it is after so many of its steps."""
    if isinstance(scheduler, ReduceLROnPlateau):
        return
    if isinstance(scheduler, OneCycleLR):  # which fails beyond its end
        tick = min(tick, int(scheduler.total_steps))
    if _jumps(scheduler) and tick > scheduler.last_epoch + 1:
        scheduler.last_epoch = tick - 1
    while getattr(scheduler, "last_epoch", tick) < tick:
        before = scheduler.last_epoch
        scheduler.step()
        if scheduler.last_epoch <= before:  # one that counts in another way
            return


def _momenta(optimizer: Optimizer) -> list[float]:
    """Of every group, or nothing where one has none."""
    found = [_momentum(group) for group in optimizer.param_groups]
    return [momentum for momentum in found if momentum is not None] if None not in found else []


def _momentum(group: dict[str, Any]) -> float | None:
    betas = group.get("betas")
    value = betas[0] if isinstance(betas, tuple | list) else group.get("momentum")
    return None if value is None else float(value)


def largest(values: Iterable[float]) -> tuple[int, float]:
    """The place and the size of the largest, the first of equals.

    Example:
        >>> largest([1.0, 3.0, 3.0])
        (1, 3.0)
    """
    return max(enumerate(values), key=lambda pair: (pair[1], -pair[0]))
