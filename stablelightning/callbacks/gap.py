"""The gap between training and validation loss in one mode, and what it advises."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stablelightning.callbacks.agreement import anyones_failure
from stablelightning.callbacks.base import StableCallback
from stablelightning.callbacks.shards import refuse_shards
from stablelightning.callbacks.spread_rows import spread_batches
from stablelightning.callbacks.steps import replace_method, step_arguments, unobserved
from stablelightning.checks import check_whole
from stablelightning.errors import ModelError, RecipeError, StableLightningWarning
from stablelightning.model.gap import Gap, advise_on_gap, dropout_rates
from stablelightning.model.generators import preserved_generators
from stablelightning.model.preserve import preserved
from stablelightning.report.wandb import log_table
from stablelightning.words import reason_of

#: Augmentations and other draws are the same at every measurement.
_SEED = 0
#: Kept at most; the oldest go first.
_KEPT = 512
_SUFFIX = "/dataloader_idx_"


class MeasureGap(StableCallback):
    """Measure the training loss as the validation loss is measured, and say what the gap advises.

    The training loss that is logged has dropout in it and is an average over weights that have
    changed since; beside a validation loss it says little. Here your ``validation_step`` is run on
    rows of the training set, at every validation, with the same weights and in eval, and what it
    would have logged as ``monitor`` is the training loss. Training is the same to the bit: loaders,
    generators, metrics and logs are not touched.

    Logged: ``regularize/gap`` (validation less training loss) and ``regularize/train``. At the end
    of training, advice in words, in ``advice`` and as the table ``regularize/advice`` in W&B: the
    dropout rate up or down (or dropout where there is none), Nesterov in the place of an adaptive
    optimizer, early stopping; nothing where nothing is to be changed.

    Args:
        rows: number of training rows, >= 1; spread evenly over the data, the same ones each time.
        monitor: the loss that ``validation_step`` logs, as a number, the smaller the better.
        required: whether a loss that is not logged is an error; ``False`` warns, and steps aside.

    Attributes:
        gaps: what was measured, as :class:`~stablelightning.model.gap.Gap`.
        advice: sentences; filled when training ends.

    Raises:
        RecipeError: a setting is out of its range; the loss is not logged; the strategy shards the
            model.

    Source:
        Srivastava et al. 2014, Dropout, JMLR 15; Wilson et al. 2017, arXiv:1705.08292.

    Example:
        >>> MeasureGap(rows=256, monitor="val_loss").advice
        []
    """

    def __init__(
        self, rows: int = 512, *, monitor: str = "val/loss", required: bool = True
    ) -> None:
        check_whole("rows", rows, least=1)
        self.rows = rows
        self.monitor = monitor
        self.required = required
        self._begin()

    def _begin(self) -> None:
        self.gaps: list[Gap] = []
        self.advice: list[str] = []
        self._start: float | None = None  # the training loss before the first step
        self._train: float | None = None  # of the validation that is running
        self._aside = False

    # ---- when -----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check what cannot be measured, and begin anew unless this Trainer goes on."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_shards(
            trainer,
            needs="MeasureGap runs the whole model",
            remedy="use strategy='ddp', or remove MeasureGap",
        )
        if trainer.global_step == 0:
            self._begin()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the training loss before the first step, against which learning is judged."""
        if self._start is None and not self._idle(trainer, pl_module):
            self._start = self._measure(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure while the weights that validate are in place."""
        if _swaps_before(trainer, self) and not self._idle(trainer, pl_module):
            self._train = self._measure(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure while the weights that validate are still in place."""
        if not _swaps_before(trainer, self) and not self._idle(trainer, pl_module):
            self._train = self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the validation loss, and log."""
        train, self._train = self._train, None
        if train is None:
            return
        found = trainer.callback_metrics.get(self.monitor)
        if found is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            self._step_aside(f"it is not logged, but {logged}")
            return
        # Logged without sync_dist it is each process's own.
        mean = trainer.strategy.reduce(found.detach().clone(), reduce_op="mean")
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        gap = Gap(step, train=train, validation=float(mean))
        self.gaps = [*self.gaps, gap][-_KEPT:]
        for logger in trainer.loggers:
            told = {"regularize/gap": gap.value, "regularize/train": gap.train}
            logger.log_metrics(told, step=step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what the gap advises."""
        if self._start is None:
            return
        self.advice = advise_on_gap(
            self.gaps,
            start=self._start,
            rates=dropout_rates(pl_module),
            optimizers=trainer.optimizers,
        )
        for advice in self.advice:
            rank_zero_info(f"MeasureGap: {advice}")
        if self.advice:
            loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
            log_table(loggers, "regularize/advice", ["advice"], [[a] for a in self.advice])

    def _idle(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        return (
            self._aside
            or trainer.sanity_checking
            or trainer.barebones
            or trainer.state.fn != TrainerFn.FITTING
            or not trainer.enable_validation
            or not is_overridden("validation_step", pl_module)
        )

    # ---- measuring ------------------------------------------------------------------------------

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> float | None:
        """Mean of the monitored loss over the rows; ``None`` where it cannot be measured."""
        failure: Exception | None = None
        total = torch.zeros(2, dtype=torch.float64)
        try:
            for value, rows in self._losses(trainer, pl_module):
                total += torch.tensor([value * rows, rows], dtype=torch.float64)
        except Exception as error:  # whatever a step raises that was written for other batches
            failure = error
        failure = anyones_failure(trainer, failure)
        if failure is not None:
            said = reason_of(failure)
            self._step_aside(said, cause=failure)
            return None
        summed = trainer.strategy.reduce(total.float().to(pl_module.device), reduce_op="sum")
        mean, rows = summed.tolist()
        return mean / rows if rows else None

    def _losses(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> Iterator[tuple[float, int]]:
        step = pl_module.validation_step
        with (
            preserved(pl_module),
            preserved_generators(_SEED),
            unobserved(trainer, pl_module),
            _no_loggers(trainer),
            _recorded(pl_module, self.monitor.partition(_SUFFIX)[0]) as logged,
        ):
            pl_module.eval()
            batches = spread_batches(
                trainer.train_dataloader,
                self.rows,
                part=trainer.global_rank,
                parts=trainer.world_size,
            )
            for number, batch in enumerate(batches):
                logged.clear()
                moved = trainer.precision_plugin.convert_input(batch)
                moved = trainer.strategy.batch_to_device(moved, dataloader_idx=0)
                step(*step_arguments(step, moved, number, 0))
                if not logged:
                    raise ModelError("it is not logged as a number by validation_step")
                yield sum(logged) / len(logged), _rows(moved)

    def _step_aside(self, why: str, *, cause: Exception | None = None) -> None:
        self._aside = True
        message = f"MeasureGap must measure {self.monitor!r} on training rows, and cannot: {why}"
        if self.required:
            raise RecipeError(
                f"{message}; name a loss that validation_step logs, or pass required=False."
            ) from cause
        rank_zero_warn(f"{message}; it steps aside.", category=StableLightningWarning)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "start": self._start,
            "gaps": [[gap.step, gap.train, gap.validation] for gap in self.gaps],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, to train."""
        if not self.goes_on:
            return
        self._start = state_dict["start"]
        self.gaps = [Gap(*values) for values in state_dict["gaps"]]


def _swaps_before(trainer: L.Trainer, callback: L.Callback) -> bool:
    """Whether weight averaging, which is called before us, swaps its weights in and out first."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    before = callbacks[: callbacks.index(callback)]
    return any(isinstance(other, WeightAveraging) for other in before)


@contextmanager
def _no_loggers(trainer: L.Trainer) -> Iterator[None]:
    """Pictures that a step sends to its logger are those of validation, not of training rows."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger()] if loggers else []
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def _recorded(pl_module: L.LightningModule, name: str) -> Iterator[list[float]]:
    """What the module logs under ``name`` while this is open, as numbers."""
    found: list[float] = []

    def log(key: str, value: Any, *_: Any, **__: Any) -> None:
        if key == name and isinstance(value, Tensor | int | float):
            found.append(float(value))

    def log_dict(values: Any, *_: Any, **__: Any) -> None:
        for key, value in values.items():
            log(key, value)

    with ExitStack() as stack:
        stack.callback(replace_method(pl_module, "log", log))
        stack.callback(replace_method(pl_module, "log_dict", log_dict))
        yield found


def _rows(batch: Any) -> int:
    sizes = (len(t) for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim > 0)
    return next(sizes, 1)
