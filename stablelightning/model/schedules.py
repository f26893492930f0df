"""Learning-rate schedules as torch schedulers that know their length and step with every step.

The mathematics is that of :mod:`stablelightning.functional.schedules`, on top of torch's own
``LambdaLR``, ``OneCycleLR`` and ``ReduceLROnPlateau``. The base rate is the optimizer's, of each
parameter group its own, so that ratios between groups are kept.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stablelightning.errors import RecipeError
from stablelightning.functional import schedules as shapes
from stablelightning.functional.schedules import check_positive, check_share
from stablelightning.model.one_cycle import OneCycle
from stablelightning.model.plateau import ReduceOnPlateau
from stablelightning.model.schedule_length import Interval
from stablelightning.model.schedule_length import total_steps as checked_steps

#: Where a warm-up begins: not at 0, at which the first step would be spent on standing still.
WARMUP_START = 0.01

__all__ = [
    "ExponentialDecay",
    "OneCycle",
    "PiecewiseConstant",
    "PowerDecay",
    "ReduceOnPlateau",
    "WarmupCosine",
    "WarmupStableDecay",
]


def _factor(step: int, *, shape: Callable[[float], float], total_steps: int) -> float:
    """The factor at a step; a function of a module, so that schedulers can be pickled."""
    return shape(min(step / total_steps, 1.0))


class _StepSchedule(LambdaLR):
    """A curve over the whole of training. Its state is the step that it is at, not the curve.

    A run that goes on with another length therefore follows the curve of that length from there.
    """

    interval: ClassVar[Interval] = "step"

    def __init__(
        self, optimizer: Optimizer, shape: Callable[[float], float], total_steps: int
    ) -> None:
        super().__init__(optimizer, partial(_factor, shape=shape, total_steps=total_steps))

    @property
    def total_steps(self) -> int:
        """Steps from the first to the last, >= 1."""
        return int(self.lr_lambdas[0].keywords["total_steps"])  # type: ignore[attr-defined]


class PowerDecay(_StepSchedule):
    """Divide the rate by one, two, three after equal stretches: fast at first, slow later.

    Args:
        optimizer: whose groups' rates are scaled.
        total_steps: optimizer steps of training, >= 1; ``None`` is filled by ``StableMixin``.
        halved_at: share of training after which the rate is halved (at exponent 1), > 0.
        exponent: power with which it falls, > 0.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        :func:`stablelightning.functional.schedules.power`.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = PowerDecay(sgd, total_steps=100, halved_at=0.5)
        >>> schedule.lr_lambdas[0](50)
        0.5
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        halved_at: float = 0.1,
        exponent: float = 1.0,
    ) -> None:
        check_positive("halved_at", halved_at)
        check_positive("exponent", exponent)
        shape = partial(shapes.power, halved_at=halved_at, exponent=exponent)
        super().__init__(optimizer, shape, checked_steps(total_steps))


class ExponentialDecay(_StepSchedule):
    """Lower the rate by the same ratio in each step, down to a share of it.

    Args:
        optimizer: whose groups' rates are scaled.
        total_steps: optimizer steps of training, >= 1; ``None`` is filled by ``StableMixin``.
        final: share of the base rate that is left at the end, in (0, 1].

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        :func:`stablelightning.functional.schedules.exponential`.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> ExponentialDecay(sgd, total_steps=100, final=0.01).lr_lambdas[0](50)
        0.1
    """

    def __init__(
        self, optimizer: Optimizer, *, total_steps: int | None = None, final: float = 0.01
    ) -> None:
        check_share("final", final)
        check_positive("final", final)
        shape = partial(shapes.exponential, final=final)
        super().__init__(optimizer, shape, checked_steps(total_steps))


class PiecewiseConstant(_StepSchedule):
    """Keep the rate, and cut it at given shares of training.

    Args:
        optimizer: whose groups' rates are scaled.
        total_steps: optimizer steps of training, >= 1; ``None`` is filled by ``StableMixin``.
        boundaries: increasing shares of training in (0, 1) at which the rate changes.
        factors: of the base rate in the stretches between, >= 0; one more than boundaries.

    Raises:
        RecipeError: a setting is out of its range, or there are too few or too many factors.

    Source:
        :func:`stablelightning.functional.schedules.piecewise_constant`.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> PiecewiseConstant(sgd, total_steps=100).lr_lambdas[0](50)
        0.1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        boundaries: Sequence[float] = (0.5, 0.75),
        factors: Sequence[float] = (1.0, 0.1, 0.01),
    ) -> None:
        for number, boundary in enumerate(boundaries):
            check_share(f"boundaries[{number}]", boundary)
        if sorted(set(boundaries)) != list(boundaries):
            raise RecipeError(f"boundaries must increase, got {list(boundaries)}.")
        if len(factors) != len(boundaries) + 1 or any(factor < 0 for factor in factors):
            raise RecipeError(
                f"factors must be {len(boundaries) + 1} numbers >= 0, one for each stretch between "
                f"{len(boundaries)} boundaries, got {list(factors)}."
            )
        shape = partial(
            shapes.piecewise_constant, boundaries=tuple(boundaries), factors=tuple(factors)
        )
        super().__init__(optimizer, shape, checked_steps(total_steps))


class WarmupCosine(_StepSchedule):
    """Rise in a straight line, then fall along half a cosine until training ends.

    Args:
        optimizer: whose groups' rates are scaled.
        total_steps: optimizer steps of training, >= 1; ``None`` is filled by ``StableMixin``.
        warmup: how long it takes to rise: a share of training in [0, 1), or a whole number of
            steps.
        final: share of the base rate that is left at the end, in [0, 1].

    Raises:
        RecipeError: a setting is out of its range, or the warm-up is as long as training.

    Source:
        :func:`stablelightning.functional.schedules.warmup_cosine`.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = WarmupCosine(sgd, total_steps=100, warmup=10)
        >>> [round(schedule.lr_lambdas[0](step), 9) for step in (10, 55, 100)]
        [1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        warmup: int | float = 0.05,
        final: float = 0.0,
    ) -> None:
        steps = checked_steps(total_steps)
        check_share("final", final)
        rise = _share("warmup", warmup, steps)
        shape = partial(shapes.warmup_cosine, warmup=rise, start=WARMUP_START, final=final)
        super().__init__(optimizer, shape, steps)


class WarmupStableDecay(_StepSchedule):
    """Rise in a straight line, stay, and fall only at the end, as one minus a square root.

    Args:
        optimizer: whose groups' rates are scaled.
        total_steps: optimizer steps of training, >= 1; ``None`` is filled by ``StableMixin``.
        warmup: how long it takes to rise: a share of training in [0, 1), or a whole number of
            steps.
        decay: how long it takes to fall, likewise; with the warm-up no more than training.
        final: share of the base rate that is left at the end, in [0, 1].

    Raises:
        RecipeError: a setting is out of its range, or both together are longer than training.

    Source:
        :func:`stablelightning.functional.schedules.warmup_stable_decay`.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = WarmupStableDecay(sgd, total_steps=100, warmup=10, decay=16)
        >>> [round(schedule.lr_lambdas[0](step), 9) for step in (10, 84, 88)]
        [1.0, 1.0, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        warmup: int | float = 0.05,
        decay: int | float = 0.2,
        final: float = 0.0,
    ) -> None:
        steps = checked_steps(total_steps)
        check_share("final", final)
        rise, fall = _share("warmup", warmup, steps), _share("decay", decay, steps)
        check_positive("decay", decay)
        if rise + fall > 1.0:
            raise RecipeError(
                f"warmup and decay together must be no longer than training ({steps} steps), got "
                f"{warmup!r} and {decay!r}; shorten one of them."
            )
        shape = partial(
            shapes.warmup_stable_decay, warmup=rise, decay=fall, start=WARMUP_START, final=final
        )
        super().__init__(optimizer, shape, steps)


def _share(name: str, value: float | int, steps: int) -> float:
    """A length as a share of training: whole numbers count steps."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < max(steps, 1):
            raise RecipeError(
                f"{name} must be shorter than training ({steps} steps), got {value} steps; give a "
                "share of training, such as 0.05."
            )
        return value / steps
    check_share(name, value)
    if value >= 1.0 and name == "warmup":
        raise RecipeError(f"{name} must be less than all of training, got {value!r}.")
    return float(value)
