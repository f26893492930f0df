"""What callbacks share that choose a learning rate before training: when, and what is told."""

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.rehearsal import Rehearsal
from stablelightning.callbacks.resume import checkpoint_to_load
from stablelightning.errors import (
    MissingPackageError,
    StableLightningError,
    StableLightningWarning,
)
from stablelightning.model.learning_rate import scale_learning_rates
from stablelightning.report.learning_rate import learning_rate_figure
from stablelightning.report.wandb import log_figure

_log = logging.getLogger(__name__)

#: Losses at the beginning of a sweep, where rates are tiny, that tell level and noise of the
#: untrained model.
UNTRAINED_STEPS = 10


class ChoosesLearningRate(StableCallback):
    """Base of the callbacks that try learning rates when training starts, and set one.

    In ``on_train_start``: optimizers exist, parameters are frozen that shall be, everything is on
    its device, and no step has been taken. Not in a run that goes on from a checkpoint, whose rates
    are those of the checkpoint, and not in ``fast_dev_run``.

    Args:
        apply: set the rate that was found; otherwise only tell it.
        required: raise where rates cannot be tried; otherwise warn, and leave the rate.

    Attributes:
        suggested: the rate that was found, ``None`` before, and where none was.
        diverged_at: the smallest rate at which the loss was seen to break, ``None`` for none.
        history: what was tried and what came of it, in plain types.
    """

    #: Before any callback that keeps a state of training, or looks at one.
    rank: ClassVar[int | None] = 5

    def __init__(self, *, apply: bool, required: bool) -> None:
        self.apply = apply
        self.required = required
        self.suggested: float | None = None
        self.diverged_at: float | None = None
        self.history: dict[str, Any] = {}

    @abstractmethod
    def choose(self, rehearsal: Rehearsal) -> dict[str, Any]:
        """Try rates; what is returned becomes :attr:`history`.

        Args:
            rehearsal: runs steps, and takes them back.

        Returns:
            At least ``suggested`` and ``diverged_at`` (rates or ``None``) and ``reason``, words
            that follow "found 0.01" or "found no rate".
        """

    # ---- when -------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose, set, and tell."""
        if checkpoint_to_load(trainer) or getattr(trainer, "fast_dev_run", 0):
            return
        try:
            rehearsal = Rehearsal(trainer, pl_module)
            found = self.choose(rehearsal)
        except StableLightningError as error:  # what a training step raises, training would, too
            if self.required:
                raise
            rank_zero_warn(
                f"{type(self).__name__} leaves the learning rate as it is: {error}",
                category=StableLightningWarning,
            )
            return
        self.history = {**found, "own": rehearsal.rate, "applied": False}
        self.suggested, self.diverged_at = found["suggested"], found["diverged_at"]
        if self.apply and self.suggested is not None:
            factor = self.suggested / rehearsal.rate
            scale_learning_rates(rehearsal.optimizer, rehearsal.schedulers, factor)
            self.history["applied"] = True
        self._tell(rehearsal.rate)
        self._log(trainer)

    # ---- a checkpoint -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was found, in plain types; the rates themselves are the optimizer's."""
        names = ("suggested", "diverged_at", "history")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know what the run found that goes on here."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    # ---- what is told -----------------------------------------------------------------------

    def _tell(self, own: float) -> None:
        name, reason = type(self).__name__, self.history["reason"]
        if self.suggested is None:
            rank_zero_warn(
                f"{name} found no learning rate ({reason}); it stays at {own:.2g}.",
                category=StableLightningWarning,
            )
        elif self.history["applied"]:
            rank_zero_info(f"{name}: learning rate {self.suggested:.2g} (was {own:.2g}), {reason}.")
        else:
            rank_zero_info(f"{name}: suggests {self.suggested:.2g}, kept {own:.2g}; {reason}.")
        if self.diverged_at is not None and own > self.diverged_at:
            where = f"a learning rate of {own:.2g} lies above {self.diverged_at:.2g}, where the "
            if self.history["applied"]:
                remedy = f"training goes on with {self.suggested:.2g} instead"
            elif self.suggested is not None:
                remedy = f"{self.suggested:.2g} was found"
            else:
                remedy = "set a smaller one"
            rank_zero_warn(
                f"{where}loss was seen to diverge; {remedy}.", category=StableLightningWarning
            )

    def _log(self, trainer: L.Trainer) -> None:
        found = {"suggested": self.suggested, "diverged_at": self.diverged_at}
        numbers = {f"learning_rate/{k}": v for k, v in found.items() if v is not None}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        if trainer.loggers:
            try:
                log_figure(
                    trainer.loggers, "learning_rate/trials", learning_rate_figure(self.history)
                )
            except MissingPackageError as error:
                _log.info("what was tried was not drawn: %s", error)


def plain(losses: Sequence[float]) -> list[float | None]:
    """Losses for a state that is saved and compared: ``None`` where one is not finite.

    Example:
        >>> plain([1.0, float("nan")])
        [1.0, None]
    """
    return [float(loss) if math.isfinite(loss) else None for loss in losses]
