"""The 1cycle policy on the optimizer's own rates."""

from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from stablelightning.errors import RecipeError
from stablelightning.functional.schedules import check_positive, check_share
from stablelightning.model.schedule_length import Interval
from stablelightning.model.schedule_length import total_steps as checked_steps

#: How far a 1cycle falls below where it began, as in torch's ``OneCycleLR``.
FINAL_DIVISOR = 1e4
#: torch divides by the number of steps up to the peak less one; this far beside it, it can.
_BESIDE = 1e-6


class OneCycle(OneCycleLR):
    """Rise to the optimizer's rate and fall to almost nothing, with momentum the other way round.

    torch's ``OneCycleLR``, whose largest rate is the optimizer's own, of each group. Where the
    optimizer has momentum (or betas), that goes from 0.95 down to 0.85 and back meanwhile.

    Args:
        optimizer: its rate is the largest of the cycle.
        total_steps: optimizer steps of training, >= 1; ``None`` is filled by ``StableMixin``.
        peak: share of training at which the rate is largest, in (0, 1); below 0.5 with three
            phases.
        three_phase: fall to where it began as fast as it rose, and spend the rest on falling to
            almost nothing.
        start: share of the largest rate to begin with, in (0, 1].
        cycle_momentum: ``None`` cycles it in optimizers that have any.

    Raises:
        RecipeError: a setting is out of its range, or momentum is to be cycled and there is none.

    Source:
        Smith, Topin 2017, arXiv:1708.07120; Smith 2018, arXiv:1803.09820 (momentum, three phases).

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        >>> schedule = OneCycle(sgd, total_steps=100)
        >>> round(sgd.param_groups[0]["lr"], 9), sgd.param_groups[0]["momentum"]
        (0.04, 0.95)
    """

    interval: ClassVar[Interval] = "step"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int | None = None,
        peak: float = 0.3,
        three_phase: bool = False,
        start: float = 0.04,
        cycle_momentum: bool | None = None,
    ) -> None:
        steps = checked_steps(total_steps)
        check_share("peak", peak, high=0.5 if three_phase else 1.0)
        check_share("start", start)
        check_positive("peak", peak)
        check_positive("start", start)
        if peak >= (0.5 if three_phase else 1.0):
            raise RecipeError(
                f"peak must be below {0.5 if three_phase else 1.0:g}, so that there is time to "
                f"fall, got {peak!r}."
            )
        has_momentum = _has_momentum(optimizer)
        if cycle_momentum and not has_momentum:
            raise RecipeError(
                f"cycle_momentum needs momentum or betas in every group, and "
                f"{type(optimizer).__name__} has none that is not 0; leave it out, or set momentum."
            )
        super().__init__(
            optimizer,
            max_lr=[float(group["lr"]) for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=float(peak if peak * steps != 1.0 else peak * (1.0 + _BESIDE)),
            cycle_momentum=has_momentum if cycle_momentum is None else cycle_momentum,
            div_factor=1.0 / start,
            final_div_factor=FINAL_DIVISOR,
            three_phase=three_phase,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a step; the length stays that of the training that goes on."""
        plan = {"total_steps", "_schedule_phases"}
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in plan})


def _has_momentum(optimizer: Optimizer) -> bool:
    """Whether torch's ``OneCycleLR`` finds in every group the momentum that it looks for."""
    if "betas" in optimizer.defaults:
        return all("betas" in group for group in optimizer.param_groups)
    return "momentum" in optimizer.defaults and all(
        group.get("momentum", 0.0) for group in optimizer.param_groups
    )
