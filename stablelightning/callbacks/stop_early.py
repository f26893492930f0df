"""Early stopping that goes back to the best weights."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.checks import check_whole
from stablelightning.errors import RecipeError, StableLightningWarning

#: Before the first check that was better than nothing.
_NEVER = -1


class StopEarly(StableCallback):
    """Stop when the monitored quantity no longer improves, and end with the weights of its best.

    Lightning's ``EarlyStopping`` decides when; by itself it ends with the last weights, which are
    ``patience`` checks past the best ones. Here parameters and buffers are kept in host memory at
    each best check, and are what the module holds when ``fit`` returns, stopped or not. Checkpoints
    are written before that, each with what it was written for: ``last.ckpt`` goes on where training
    was, and takes the best weights with it. With weight averaging the averaged weights are kept, as
    it was they that were validated.

    Logged: ``stop/best_epoch`` and ``stop/best_score``, at the end.

    Args:
        monitor: the logged quantity that decides.
        patience: number of checks without a better value after which training stops, >= 1. There is
            a check after each epoch, or after each validation where these are rarer or more often.
        min_delta: how much better is better, >= 0.
        mode: whether the smallest or the largest value is the best.
        required: whether a quantity that is not logged is an error; ``False`` warns, and trains
            without stopping.

    Attributes:
        best_epoch: number of the epoch, from 0, whose weights are the best; -1 before the first.
        best_score: the value there, ``nan`` before the first.

    Raises:
        RecipeError: a setting is out of its range; the quantity is not logged; the strategy shards
            the model.

    Source:
        Prechelt 1998, Early Stopping, But When?, in Neural Networks: Tricks of the Trade.

    Example:
        >>> stop = StopEarly("val/accuracy", mode="max", patience=3)
        >>> stop.best_epoch
        -1
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        *,
        patience: int = 8,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        required: bool = True,
    ) -> None:
        check_whole("patience", patience, least=1)
        if not isinstance(min_delta, int | float) or not min_delta >= 0:
            raise RecipeError(f"min_delta must be >= 0, got {min_delta!r}; mode says which way.")
        if mode not in ("min", "max"):
            raise RecipeError(f"mode must be 'min' or 'max', got {mode!r}.")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.required = required
        self._begin()

    def _begin(self) -> None:
        self._stopping = EarlyStopping(
            monitor=self.monitor,
            patience=self.patience,
            min_delta=self.min_delta,
            mode=self.mode,
            strict=False,
            check_on_train_epoch_end=False,  # we say when
        )
        self.best_epoch, self._best_step = _NEVER, _NEVER
        self._best: dict[str, Tensor] | None = None  # None: those of the module, or of none yet
        self._validated: dict[str, Tensor] | None = None
        self._told = False
        self._seen = False  # whether there was a validation since this fit began

    @property
    def state_key(self) -> str:
        """The key in a checkpoint, so that several may watch several quantities."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def best_score(self) -> float:
        """The best value of what is monitored; ``nan`` before the first check."""
        return float("nan") if self.best_epoch == _NEVER else float(self._stopping.best_score)

    def forget_best(self) -> None:
        """Let go of the best weights: the model is another now, and its next check is the best.

        A training that ends before there is one ends with its last weights.
        """
        self._best = None
        self.best_epoch, self._best_step = _NEVER, _NEVER
        worst = torch.inf if self.mode == "min" else -torch.inf
        self._stopping.best_score = torch.full_like(self._stopping.best_score, worst)

    # ---- when -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse strategies that do not leave weights in one piece, and begin anew."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_shards(
            trainer,
            needs="StopEarly keeps whole weights",
            remedy="use strategy='ddp', or Lightning's EarlyStopping with a ModelCheckpoint",
        )
        self._seen = False
        if trainer.global_step == 0:
            self._begin()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best weights of an earlier fit of this Trainer, which are in the module."""
        if self._best is None and self.best_epoch != _NEVER:
            self._best = _copies(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check after a validation, where these do not come once per epoch."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._seen = True
        averaged = _averaged(trainer)
        if averaged is not None:  # the average may move before the epoch ends
            self._validated = _copies(averaged)
        if not _once_per_epoch(trainer):
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check at the end of an epoch, when quantities of training are known too."""
        if _once_per_epoch(trainer):
            self._check(trainer, pl_module)

    def _check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
            return
        if self.monitor not in trainer.callback_metrics:
            if trainer.enable_validation and not self._seen:
                return  # Lightning goes on from the end of an epoch without validating it again
            self._say_that_it_is_not_logged(trainer)
            return
        # Logged without sync_dist the value differs between processes, and what is kept must not.
        value = trainer.callback_metrics[self.monitor].detach().clone().squeeze()
        value = trainer.strategy.reduce(value, reduce_op="mean")
        before = self._stopping.best_score
        stops, reason = self._stopping._evaluate_stopping_criteria(value)
        if stops:
            self._stopping.stopped_epoch = trainer.current_epoch
            self._stopping.stopping_reason_message = reason
            trainer.should_stop = True
        if self._stopping.best_score is not before:
            self._best = self._validated or _copies(pl_module)
            self.best_epoch, self._best_step = trainer.current_epoch, trainer.global_step
        self._validated = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back to the best weights."""
        if self._best is None:
            return
        _copy_back(self._best, pl_module)
        if trainer.world_size > 1:  # statistics of batch norm are each process's own
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self._best_step != trainer.global_step:
            rank_zero_info(
                f"StopEarly went back to the weights of epoch {self.best_epoch} ({self.monitor} "
                f"{self.best_score:.4g}), the best of {trainer.current_epoch} epochs."
            )
        told = {"stop/best_epoch": float(self.best_epoch), "stop/best_score": self.best_score}
        for logger in trainer.loggers:
            logger.log_metrics(told, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        self._best = None if _averaged(trainer) is None else _copies(pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back once more where weight averaging has written its last average since."""
        if self._best is not None:
            for model in (pl_module, _averaged(trainer)):
                if model is not None:  # the average takes the module's place in Trainer.validate
                    _copy_back(self._best, model)
        self._best = None

    def _say_that_it_is_not_logged(self, trainer: L.Trainer) -> None:
        logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        if self.required:
            raise RecipeError(
                f"StopEarly monitors {self.monitor!r}, which is not logged (logged: {logged}); "
                "name one of these as monitor, or log it with self.log in validation_step."
            )
        if not self._told:
            self._told = True
            rank_zero_warn(
                f"StopEarly monitors {self.monitor!r}, which is not logged (logged: {logged}): "
                "training is not stopped, and ends with its last weights.",
                category=StableLightningWarning,
            )

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What decides when to stop, and the best weights."""
        return {
            "stopping": self._stopping.state_dict(),
            "best_epoch": self.best_epoch,
            "best_step": self._best_step,
            "weights": self._best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; settings are those of now."""
        self._stopping.load_state_dict(state_dict["stopping"] | {"patience": self.patience})
        self.best_epoch, self._best_step = state_dict["best_epoch"], state_dict["best_step"]
        self._best = state_dict["weights"]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the best weights once where they are those of the checkpoint itself."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        # A guard may have gone back to older weights since, at the same step.
        if (
            state
            and self._best_step == trainer.global_step
            and _equal(state["weights"], checkpoint["state_dict"])
        ):
            checkpoint["callbacks"][self.state_key] = {**state, "weights": None}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the best weights from the checkpoint itself where it was saved at the best."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state and state["weights"] is None and state["best_epoch"] != _NEVER:
            state["weights"] = {k: v.clone() for k, v in _tensors(checkpoint["state_dict"]).items()}


def _once_per_epoch(trainer: L.Trainer) -> bool:
    return trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1


def _averaged(trainer: L.Trainer) -> nn.Module | None:
    """The average that validates in the place of the module, if there is one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            return callback._average_model.module
    return None


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _copies(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, in host memory."""
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in _tensors(model.state_dict()).items()
    }


def _equal(kept: Mapping[str, Tensor] | None, state: Mapping[str, Any]) -> bool:
    present = _tensors(state)
    return kept is None or (
        kept.keys() == present.keys()
        and all(torch.equal(value, present[name].cpu()) for name, value in kept.items())
    )


def _copy_back(kept: Mapping[str, Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in _tensors(model.state_dict()).items():
            if name in kept:  # metrics are made during validation
                value.copy_(kept[name])
