"""Training for a few steps before training, as it will be, and without a trace."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from stablelightning.callbacks.rehearsal_data import training_batches
from stablelightning.callbacks.shards import is_sharded
from stablelightning.callbacks.taken_back import taken_back
from stablelightning.errors import DataError, ModelError
from stablelightning.model.learning_rate import base_learning_rates


class Rehearsal:
    """Runs of real training steps at chosen learning rates, each from the same start.

    A step is the one that Lightning will take: the module's own hooks, ``training_step`` and
    optimizer, the Trainer's precision, strategy, accumulation and clipping. Callbacks see none of
    it, schedulers do not step, and nothing is logged. After a run all is as it was, to the bit:
    parameters, buffers, what modules keep, the optimizer, the scaler, the Trainer's counters, and
    every global generator.

    The ratios between the rates of parameter groups are kept: what is chosen is the rate of the
    group that has the largest of those with something to learn.

    Args:
        trainer: in ``on_train_start``.
        pl_module: its module.

    Attributes:
        rate: that rate, as the user has set it; the peak, where a schedule has one.
        optimizer: the one that training will use.
        schedulers: its schedulers.

    Raises:
        ModelError: the module optimizes by itself, has nothing to learn, or no rate that could be
            set; the strategy shards the model.
        DataError: there are no batches, or they can be read only once.
    """

    def __init__(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _refuse(trainer, pl_module)
        self._trainer, self._module = trainer, pl_module
        self.optimizer: Optimizer = trainer.optimizers[0]
        self.schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._bases = base_learning_rates(self.optimizer, self.schedulers)
        self.rate = self._largest()
        self._batches = 0

    def run(
        self, rates: Iterable[float], *, until: Callable[[list[float]], bool] = lambda losses: False
    ) -> list[tuple[float, float]]:
        """Train one optimizer step at each rate, and take everything back.

        Args:
            rates: of :attr:`rate`'s group; the others keep their ratio to it.
            until: asked after every step, given the losses so far; ends the run.

        Returns:
            Of every step its rate, and the loss before it was taken: the mean over the processes
            and over the batches of an accumulated step. A step that was left out
            (``training_step`` gave ``None``) is not among them.

        Raises:
            ModelError: the module sets its learning rates by itself.
            DataError: there is no batch.
        """
        steps: list[tuple[float, float]] = []
        self._batches = 0
        with (
            taken_back(self._trainer, self._module, self.optimizer),
            training_batches(self._trainer) as batches,
        ):
            self._hook("on_train_start")
            self._hook("on_train_epoch_start")
            for rate in rates:
                self._set(rate)
                loss = self._step(batches)
                self._refuse_other_rates(rate)
                if loss is not None:
                    steps.append((rate, loss))
                    if until([each for _, each in steps]):
                        break
        return steps

    # ---- a step -----------------------------------------------------------------------------

    def _step(self, batches: Iterator[Any]) -> float | None:
        """One step of the optimizer, over as many batches as it accumulates."""
        parts = []
        for place in range(self._trainer.accumulate_grad_batches):
            loss = self._learn(self._next(batches), self._batches, last=place + 1)
            self._batches += 1
            if loss is not None:
                parts.append(loss)
        if not parts:
            return None
        # Each part was divided by the number of batches that are accumulated.
        mean = torch.stack([part.float() for part in parts]).sum()
        return float(self._trainer.strategy.reduce(mean, reduce_op="mean"))

    def _next(self, batches: Iterator[Any]) -> Any:
        batch = next(batches, None)
        if batch is None:
            raise DataError(
                f"a trial run of {type(self._module).__name__} needs batches, and the training "
                "loader gives none; give it data, or set the learning rate by hand."
            )
        trainer = self._trainer
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)

    def _learn(self, batch: Any, number: int, *, last: int) -> Tensor | None:
        """What Lightning's training loop does with a batch, the ``last`` one of its step so far."""
        loop = self._trainer.fit_loop.epoch_loop
        loop.batch_progress.increment_ready()
        # The loop asks this counter whether a step is due, and whether the epoch ends here.
        loop.batch_progress.current.ready = last
        if self._hook("on_train_batch_start", batch, number) == -1:
            return None
        arguments = loop._build_kwargs(OrderedDict(), batch, number)
        output = loop.automatic_optimization.run(self.optimizer, number, arguments)
        self._hook("on_train_batch_end", output, batch, number)
        loss = output.get("loss")
        return None if loss is None else loss.detach()

    def _hook(self, name: str, *arguments: Any) -> Any:
        return call._call_lightning_module_hook(self._trainer, name, *arguments)

    # ---- its rate ---------------------------------------------------------------------------

    def _largest(self) -> float:
        learning = [
            base
            for base, group in zip(self._bases, self.optimizer.param_groups, strict=True)
            if any(parameter.requires_grad for parameter in group["params"])
        ]
        if not max(learning, default=0.0) > 0:
            raise ModelError(
                "a learning rate can be chosen where parameters learn at a rate > 0, and "
                f"{type(self._module).__name__} has none; unfreeze some, or raise lr above 0."
            )
        return max(learning)

    def _rates_at(self, rate: float) -> list[float]:
        return [base * (rate / self.rate) for base in self._bases]

    def _set(self, rate: float) -> None:
        for group, value in zip(self.optimizer.param_groups, self._rates_at(rate), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def _refuse_other_rates(self, rate: float) -> None:
        for group, value in zip(self.optimizer.param_groups, self._rates_at(rate), strict=True):
            # A rate that is a tensor has its own precision.
            if abs(float(group["lr"]) - value) > 1e-5 * value:
                raise ModelError(
                    f"a trial run must set the learning rate, and {type(self._module).__name__} "
                    f"sets its own ({float(group['lr']):g} in place of {value:g}); write it as a "
                    "scheduler, which rests meanwhile."
                )


def _refuse(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    name, remedy = type(pl_module).__name__, "set the learning rate by hand, or leave it as it is"
    if not pl_module.automatic_optimization:
        raise ModelError(
            f"trial runs need Lightning's automatic optimization, and {name} optimizes by itself; "
            f"{remedy}."
        )
    if len(trainer.optimizers) != 1 or not isinstance(trainer.optimizers[0], Optimizer):
        raise ModelError(f"trial runs need one optimizer, and {name} configures none; {remedy}.")
    if is_sharded(trainer):
        raise ModelError(
            "trial runs need the whole model on every process, got "
            f"{type(trainer.strategy).__name__}; choose on one device, and write the rate down."
        )
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise ModelError(
            f"trial runs give training_step a batch, and that of {name} takes dataloader_iter; "
            f"{remedy}."
        )
