"""Which checkpoints a run keeps: the best one and the last one."""

from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from stablelightning.errors import StableLightningWarning

#: What a loss over the validation set is called: by StableMixin, and in Lightning's own examples.
_USUAL = ("val/loss", "val_loss")


class KeepBest(ModelCheckpoint):
    """Keep the best checkpoint as ``best.ckpt``.

    Args:
        dirpath: the folder; ``None`` puts ``checkpoints/`` where Lightning does.
        monitor: the logged quantity that decides; ``None`` takes ``val/loss`` or ``val_loss``, and
            where neither is logged keeps the latest checkpoint.
        mode: whether the smallest or the largest value is the best.
        filename: name of the file, without its suffix.

    Example:
        >>> KeepBest(monitor="val/accuracy", mode="max").filename
        'best'
    """

    def __init__(
        self,
        dirpath: str | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        filename: str = "best",
    ) -> None:
        super().__init__(dirpath=dirpath, filename=filename, monitor=monitor, mode=mode)
        self._asked_for = monitor
        self._settled = monitor is not None

    @property
    def state_key(self) -> str:
        """The key in a checkpoint; what was asked for, not what was found, so that runs resume."""
        return self._generate_state_key(monitor=self._asked_for, mode=self.mode)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle what is monitored, then save as ``ModelCheckpoint`` does."""
        self._settle(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save as ``ModelCheckpoint`` does; where nothing validates, settle what is monitored."""
        # Otherwise the first validation does: with check_val_every_n_epoch it is epochs away.
        if not trainer.enable_validation:
            self._settle(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def last(self) -> ModelCheckpoint:
        """A second callback that keeps the state of the last epoch as ``last.ckpt`` beside it.

        ``save_last=True`` would keep the last one that was *saved*, which is the best one again.
        """
        return ModelCheckpoint(dirpath=self.dirpath, filename="last", save_on_train_epoch_end=True)

    def _settle(self, trainer: Trainer) -> None:
        if self._settled or trainer.sanity_checking:
            return
        self._settled = True
        self.monitor = next((name for name in _USUAL if name in trainer.callback_metrics), None)
        if self.monitor is None:
            rank_zero_warn(
                f"the best checkpoint is chosen by {' or '.join(_USUAL)}, and the model logs "
                "neither; the latest one is kept. Name another quantity with --checkpoint.monitor.",
                category=StableLightningWarning,
            )
