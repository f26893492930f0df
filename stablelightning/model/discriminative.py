"""Parts of an optimizer's groups at rates of their own, in the middle of any schedule of torch."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stablelightning.errors import ModelError, RecipeError
from stablelightning.model.learning_rate import (
    GROUP_RATES,
    SCHEDULER_RATES,
    base_learning_rates,
    unrolled,
)

#: What schedulers keep for each group, besides rates.
_KEPT_FOR_GROUPS = ("lr_lambdas", "base_momentums", "max_momentums")
#: How the names of such lists end in schedulers that are not torch's.
_ENDINGS = ("lrs", "rates", "lambdas", "momentums")
_RATE_ENDINGS = ("lrs", "rates")


def split_groups_(
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    parts: Sequence[Iterable[Tensor]],
    *,
    factors: Sequence[float],
    names: Sequence[str] | None = None,
) -> None:
    """Split parameter groups so that each part of the parameters learns at a rate of its own.

    Every group of the optimizer falls into as many as there are parts in it, with its settings and
    the states of its parameters; then the rates of each part are multiplied by its factor, now and
    for the rest of all schedules. What schedulers keep for each group (base rates, peaks, floors,
    lambdas, momenta) is widened alike, through ``SequentialLR`` and ``ChainedScheduler``. From then
    on, each schedule of torch gives a part ``factor`` times what it would have given its group, to
    the bit where the factor is a power of two. A floor that a schedule keeps for all groups
    (``eta_min``, the smallest change of ``ReduceLROnPlateau``) becomes one for each.

    Which parameter is in which part is decided by identity. Groups and schedulers are changed, and
    none is made anew, so that whoever holds them keeps them; it can be done at any time, and once
    is enough. A checkpoint that was saved after it fits an optimizer that was split the same way.

    Rates that a scheduler of your own keeps for each group are found where its list is named like
    torch's (ending in ``lrs``, ``rates``, ``lambdas`` or ``momentums``) or holds the groups' own
    rates. One that computes from ``base_lrs``, or from the groups, goes on as torch's do.

    Args:
        optimizer: changed in place.
        schedulers: of it, changed in place; those of other optimizers are left.
        parts: parameters of each part, such as of each depth group; what is in none keeps its rate,
            what is in several belongs to the first. Those that the optimizer lacks are left out.
        factors: of each part's rates, > 0 and finite.
        names: of the parts, for ``LearningRateMonitor``; ``None`` leaves groups without a name so.

    Raises:
        RecipeError: a factor is out of its range, or there is not one for each part.
        ModelError: the optimizer takes one group only.

    Example:
        >>> from torch.optim.lr_scheduler import CosineAnnealingLR
        >>> body, head = torch.zeros(2), torch.zeros(2)
        >>> sgd = torch.optim.SGD([body, head], lr=0.1)
        >>> schedule = CosineAnnealingLR(sgd, T_max=2)
        >>> split_groups_(sgd, [schedule], [[body], [head]], factors=[0.25, 1.0])
        >>> sgd.step(), schedule.step()
        (None, None)
        >>> [round(group["lr"], 6) for group in sgd.param_groups]
        [0.0125, 0.05]
    """
    _check(optimizer, parts, factors, names)
    own = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper, or the optimizer
    part_of = {id(p): number for number in reversed(range(len(parts))) for p in parts[number]}
    plan = [
        (place, number)
        for place, group in enumerate(optimizer.param_groups)
        for number in sorted({part_of.get(id(p), -1) for p in group["params"]} or {-1})
    ]
    places = [place for place, _ in plan]
    amounts = [1.0 if number < 0 else float(factors[number]) for _, number in plan]
    for scheduler in unrolled(schedulers):
        if getattr(scheduler, "optimizer", own) is own:
            _widen(scheduler, places, amounts)
    pieces = [
        _piece(optimizer.param_groups, place, number, part_of=part_of, names=names)
        for place, number in plan
    ]
    for piece, amount in zip(pieces, amounts, strict=True):
        for name in GROUP_RATES:
            if piece.get(name) is not None:
                piece[name] = _times(piece[name], amount)
    kept: set[int] = set()
    for number, (place, piece) in enumerate(zip(places, pieces, strict=True)):
        if place not in kept:  # whoever holds the group goes on holding its first part
            kept.add(place)
            group = optimizer.param_groups[place]
            group.update(piece)
            pieces[number] = group
    optimizer.param_groups[:] = pieces


def factors_for(
    optimizer: Optimizer, schedulers: Iterable[Any], rates: Sequence[float]
) -> list[float]:
    """The factors with which :func:`split_groups_` gives parts the rates that are asked for.

    They are what the optimizer's own rate is set to where schedules leave it alone, and their peaks
    or bases otherwise. Of an optimizer with several groups, they are those of the one that learns
    fastest; the others keep their ratio to it.

    Args:
        optimizer: before it is split; only read.
        schedulers: of it; only read.
        rates: of each part, > 0.

    Raises:
        ModelError: the optimizer's own rate is 0, or no number.

    Example:
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> factors_for(sgd, [], [0.125, 0.25])
        [0.25, 0.5]
    """
    base = max(base_learning_rates(optimizer, schedulers))
    if not base > 0:
        raise ModelError(
            f"rates by depth need an optimizer that learns at a rate > 0, and that of "
            f"{type(optimizer).__name__} is {base:g}; raise its lr."
        )
    return [rate / base for rate in rates]


def _check(
    optimizer: Optimizer, parts: Sequence[Any], factors: Sequence[Any], names: Sequence[Any] | None
) -> None:
    for factor in factors:
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not number or not 0 < factor < math.inf:
            raise RecipeError(
                f"factors of rates must be finite numbers > 0, got {factor!r}; to stop learning, "
                "freeze the parameters instead."
            )
    if len(factors) != len(parts) or (names is not None and len(names) != len(parts)):
        raise RecipeError(
            f"each of the {len(parts)} parts must have one factor, and one name where there are "
            f"any, got {len(factors)} and {len(names or ())}."
        )
    if isinstance(getattr(optimizer, "optimizer", optimizer), LBFGS):
        raise ModelError(
            "rates of their own need an optimizer that takes several parameter groups, and LBFGS "
            "takes one; leave the rates out, or use another optimizer."
        )


def _piece(
    groups: list[dict[str, Any]],
    place: int,
    number: int,
    *,
    part_of: dict[int, int],
    names: Sequence[str] | None,
) -> dict[str, Any]:
    """One part of a group, with its settings."""
    group = groups[place]
    inside = [n for n, p in enumerate(group["params"]) if part_of.get(id(p), -1) == number]
    piece = {name: value for name, value in group.items() if name != "params"}
    piece["params"] = [group["params"][n] for n in inside]
    if "param_names" in group:  # of an optimizer that was made of named parameters
        piece["param_names"] = [group["param_names"][n] for n in inside]
    if number >= 0 and (names is not None or "name" in group):
        of_group = group.get("name", f"group_{place}" if len(groups) > 1 else "")
        of_part = f"part_{number}" if names is None else names[number]
        piece["name"] = f"{of_group}/{of_part}".lstrip("/")
    return piece


# ---- what schedulers keep ---------------------------------------------------------------------


def _widen(scheduler: Any, places: list[int], amounts: list[float]) -> None:
    count = max(places, default=-1) + 1
    _give_floors_of_their_own_(scheduler, count, amounts)
    groups = scheduler.optimizer.param_groups if hasattr(scheduler, "optimizer") else []
    for name, values in list(vars(scheduler).items()):
        if not isinstance(values, list | tuple) or len(values) != count:
            continue
        is_rate = _are_rates(name, values, groups)
        if is_rate or _are_for_groups(name):
            pairs = zip(places, amounts, strict=True)
            wide = [_times(values[at], amount if is_rate else 1.0) for at, amount in pairs]
            setattr(scheduler, name, wide)


def _are_rates(name: str, values: Sequence[Any], groups: list[dict[str, Any]]) -> bool:
    if not all(isinstance(v, int | float | Tensor) for v in values):
        return False
    if name in SCHEDULER_RATES or name.endswith(_RATE_ENDINGS):
        return True
    held = zip(values, groups, strict=False)
    return bool(groups) and all(_is_a_rate_of(value, group) for value, group in held)


def _is_a_rate_of(value: Any, group: dict[str, Any]) -> bool:
    rates = (group.get(name) for name in GROUP_RATES)
    # A whole number counts steps or epochs, whatever the rate is.
    return not isinstance(value, int) and any(r is not None and float(r) == value for r in rates)


def _are_for_groups(name: str) -> bool:
    return name in _KEPT_FOR_GROUPS or name.endswith(_ENDINGS)


def _times(value: Any, amount: float) -> Any:
    """A rate times a factor; of tensors always another one, since parts must not share it."""
    if isinstance(value, Tensor):
        return value.detach() * amount
    return value if amount == 1.0 else value * amount


# ---- floors that a schedule keeps for all groups ------------------------------------------------


class _FloorForEachGroup:
    """A schedule with the floor ``eta_min``, which has one for each group from now on."""

    eta_min: float
    eta_mins: list[float]

    def get_lr(self) -> list[Any]:
        return self._each(super().get_lr)  # type: ignore[misc]

    def _each(self, rates: Callable[[], list[Any]]) -> list[Any]:
        """Ask for all groups with the floor of each, since torch asks for one floor."""
        usual, found = self.eta_min, {}
        try:
            for floor in dict.fromkeys(self.eta_mins):
                self.eta_min = floor
                found[floor] = rates()
        finally:
            self.eta_min = usual
        return [found[floor][place] for place, floor in enumerate(self.eta_mins)]


class _ClosedFloorForEachGroup(_FloorForEachGroup):
    """The same for those with a closed form, which torch asks for; others must not have one."""

    def _get_closed_form_lr(self) -> list[Any]:
        return self._each(super()._get_closed_form_lr)  # type: ignore[misc]


class _ChangeForEachGroup:
    """A plateau whose smallest change ``eps`` is one for each group from now on."""

    optimizer: Optimizer
    factor: float
    min_lrs: list[float]
    least_changes: list[float]

    def _reduce_lr(self, epoch: int) -> None:
        groups = self.optimizer.param_groups
        for group, floor, least in zip(groups, self.min_lrs, self.least_changes, strict=True):
            rate = float(group["lr"])
            cut = max(rate * self.factor, floor)
            if rate - cut > least:
                if isinstance(group["lr"], Tensor):
                    with torch.no_grad():
                        group["lr"].fill_(cut)
                else:
                    group["lr"] = cut


#: The class that a scheduler's class becomes; made once, so that schedulers stay of one kind.
_WITH_FLOORS: dict[type, type] = {}


def _give_floors_of_their_own_(scheduler: Any, groups: int, amounts: list[float]) -> None:
    """Make a list of a floor for all groups, and let the scheduler look it up there."""
    kind, present = type(scheduler), vars(scheduler)
    if present.get("eta_min") and "eta_mins" not in present and hasattr(kind, "get_lr"):
        scheduler.eta_mins = [scheduler.eta_min] * groups
        closed = hasattr(kind, "_get_closed_form_lr")
        _become(scheduler, kind, _ClosedFloorForEachGroup if closed else _FloorForEachGroup)
    cuts = getattr(kind, "_reduce_lr", None)
    if cuts is ReduceLROnPlateau._reduce_lr and "least_changes" not in present:
        scheduler.least_changes = [scheduler.eps] * groups
        _become(scheduler, kind, _ChangeForEachGroup)


def _become(scheduler: Any, kind: type, wider: type) -> None:
    if kind not in _WITH_FLOORS:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        _WITH_FLOORS[kind] = type(kind.__name__, (wider, kind), names)
    scheduler.__class__ = _WITH_FLOORS[kind]
