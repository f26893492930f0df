"""Performance scheduling: the rate falls when a metric stands still."""

from typing import Any, ClassVar, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError
from stablelightning.model.schedule_length import Interval


class ReduceOnPlateau(ReduceLROnPlateau):
    """Cut the rate when a metric has not improved for a while (performance scheduling).

    torch's ``ReduceLROnPlateau``, asked once an epoch, which knows the metric that it watches.

    Args:
        optimizer: whose groups' rates are cut.
        monitor: the logged key that is watched; ``None`` is the ``monitor`` of ``StableMixin``.
        mode: ``"min"`` for a loss, ``"max"`` for an accuracy.
        factor: by which the rate is multiplied, in (0, 1).
        patience: epochs without improvement after which it is cut, >= 0.
        min_lr: below which no rate is cut, >= 0.

    Raises:
        RecipeError: a setting is out of its range.

    Source:
        Géron, Hands-On Machine Learning, chapter 11 (performance scheduling); torch.

    Example:
        >>> import torch
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = ReduceOnPlateau(sgd, patience=0)
        >>> for loss in (1.0, 1.0):
        ...     schedule.step(loss)
        >>> sgd.param_groups[0]["lr"]
        0.5
    """

    interval: ClassVar[Interval] = "epoch"

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.5,
        patience: int = 5,
        min_lr: float = 0.0,
    ) -> None:
        if not isinstance(factor, float) or not 0.0 < factor < 1.0:
            raise RecipeError(f"factor must be a number between 0 and 1, got {factor!r}.")
        check_whole("patience", patience, least=0)
        if mode not in ("min", "max"):
            raise RecipeError(f"mode must be 'min' or 'max', got {mode!r}.")
        if min_lr < 0:
            raise RecipeError(f"min_lr must be >= 0, got {min_lr!r}.")
        super().__init__(optimizer, mode=mode, factor=factor, patience=patience, min_lr=min_lr)
        self.monitor = monitor

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an epoch; what is watched stays what it is now."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "monitor"})
