"""Optimizers that train one set of weights and mean another: switched at the right moments."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer

from stablelightning.callbacks.base import StableCallback


def has_modes(optimizer: Any) -> bool:
    """Whether an optimizer has a ``train()`` and an ``eval()``, as schedule-free ones do.

    Example:
        >>> import torch
        >>> has_modes(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        False
    """
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


class SwitchOptimizerModes(StableCallback):
    """Put optimizers with ``train()`` and ``eval()`` into the mode that the moment needs.

    A schedule-free optimizer takes gradients at one point and means another, an average: it holds
    the first in the parameters while it trains, and the second on request. This callback asks for
    the average wherever weights are judged or kept: in validation, in every checkpoint, when
    training ends or fails; and for the first before every step. Around any other optimizer it does
    nothing.

    Switching rounds: a run that validates or saves at other steps differs in the last bits. A
    resumed run is the unbroken one to the bit. Checkpoints of ``save_weights_only=True`` that are
    written between two validations hold what is trained: Lightning asks no callback there.

    Statistics of batch norm belong to the weights that were trained; the package ``schedulefree``
    tells how to renew them before evaluation.

    Source:
        Defazio et al. 2024, arXiv:2405.15682.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = L.Trainer(
        ...     accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=1,
        ...     enable_checkpointing=False, enable_model_summary=False,
        ...     callbacks=[SwitchOptimizerModes()],
        ... )
        >>> trainer.fit(BoringModel())
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Train what is trained."""
        for optimizer in _with_modes(trainer):
            optimizer.train()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge the average; it stays until the next batch, so that checkpoints have it."""
        _average(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the average: checkpoints of the epoch are written next."""
        _average(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average."""
        _average(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave the average."""
        _average(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average where a checkpoint is written between two steps."""
        training = [o for o in _with_modes(trainer) if _is_training(o)]
        if not training:
            return
        for optimizer in training:
            optimizer.eval()
        # Collected before, they are the very tensors that train() is about to write.
        averaged = trainer.strategy.lightning_module_state_dict()
        kept = checkpoint["state_dict"]
        kept.update({k: _copied(v) for k, v in averaged.items() if k in kept})
        if "optimizer_states" in checkpoint:
            states = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
            checkpoint["optimizer_states"] = states
        for optimizer in training:
            optimizer.train()


def _with_modes(trainer: L.Trainer) -> list[Any]:
    return [optimizer for optimizer in trainer.optimizers if has_modes(optimizer)]


def _average(trainer: L.Trainer) -> None:
    for optimizer in _with_modes(trainer):
        optimizer.eval()


def _is_training(optimizer: Optimizer) -> bool:
    """Both packages keep the mode in the groups; ``schedulefree`` calls it ``train_mode``."""
    return any(group.get("train_mode", False) for group in optimizer.param_groups)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
