"""Strategies under which no process holds a whole model."""

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from stablelightning.errors import RecipeError


def is_sharded(trainer: L.Trainer) -> bool:
    """Whether weights, gradients or the state of optimizers may lie in parts on several devices.

    Example:
        >>> is_sharded(L.Trainer(accelerator="cpu", logger=False, barebones=True))
        False
    """
    kinds = FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy
    return isinstance(trainer.strategy, kinds)


def refuse_shards(trainer: L.Trainer, *, needs: str, remedy: str) -> None:
    """Say in words what cannot be done to a model that lies in parts.

    Args:
        trainer: of the run.
        needs: who needs what: ``"MonitorSignals needs whole weights"``.
        remedy: what to do instead.

    Raises:
        RecipeError: the strategy shards.

    Example:
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> refuse_shards(trainer, needs="MonitorSignals needs whole weights", remedy="use ddp")
    """
    if is_sharded(trainer):
        strategy = type(trainer.strategy).__name__
        raise RecipeError(f"{needs} on every process, got {strategy}; {remedy}.")
