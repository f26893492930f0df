"""A LightningModule that races: its own step and its own optimizer, and no trainer to disturb."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stablelightning.errors import ModelError
from stablelightning.model.step import silenced


def copy_of(pl_module: L.LightningModule, trainer: L.Trainer) -> L.LightningModule:
    """Copy a module with everything in it, but for its trainer, which both then have.

    Raises:
        ModelError: it holds something that cannot be copied.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
        >>> copy_of(BoringModel(), trainer).layer
        Linear(in_features=32, out_features=2, bias=True)
    """
    try:
        made = copy.deepcopy(pl_module, {id(trainer): trainer})
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{type(pl_module).__name__} must be copied to be tried out, and it cannot be "
            f"({str(error).strip().splitlines()[0]}); keep what has no copies out of it."
        ) from error
    made.trainer = trainer  # a copied module has none
    return made


class LightningContestant:
    """A copy of a LightningModule, trained as Lightning's automatic optimization would.

    The module's own ``training_step`` and ``configure_optimizers`` are used, in the Trainer's
    precision, with its gradient clipping and the schedulers that step with every batch. Hooks
    around the step are not called, and nothing is logged.

    Args:
        module: a copy, changed.
        trainer: only asked.

    Raises:
        ModelError: the module optimizes by itself, or has not exactly one optimizer.
    """

    def __init__(self, module: L.LightningModule, trainer: L.Trainer) -> None:
        if not module.automatic_optimization:
            raise ModelError(
                f"a race needs Lightning's automatic optimization, and {type(module).__name__} "
                "optimizes by itself; give one candidate, which is taken without a race."
            )
        if not is_overridden("training_step", module):
            raise ModelError(f"a race needs a training_step, and {type(module).__name__} has none.")
        self.module = module.to(trainer.strategy.root_device)
        trainer.precision_plugin.convert_module(self.module)
        self._trainer = trainer
        with silenced(module), unlogged(trainer):
            self._optimizer, self._schedulers = _read(module.configure_optimizers(), module)

    def learn(self, batch: Any, index: int) -> None:
        """Take one optimizer step."""
        self.module.train()
        batch = self.prepared(batch)

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            loss = self._loss(batch, index)
            if loss is None or not loss.requires_grad:  # the step skips this batch
                return torch.zeros(())
            loss.backward()
            self._clip()
            return loss.detach()

        step: Callable[..., Any] = self._optimizer.step
        with silenced(self.module), unlogged(self._trainer):
            step(closure)
        for scheduler in self._schedulers:
            scheduler.step()

    def loss(self, batch: Any) -> float:
        """The loss of the training step in eval, where nothing is learned."""
        self.module.eval()
        with silenced(self.module), unlogged(self._trainer), torch.no_grad():
            loss = self._loss(self.prepared(batch), 0)
        return float("nan") if loss is None else float(loss)

    def _loss(self, batch: Any, index: int) -> Tensor | None:
        with self._trainer.precision_plugin.train_step_context():
            step: Any = self.module.training_step
            parameters = len(_positional(step))
            value = step(*(batch, index, 0)[:parameters])
        found = value.get("loss") if isinstance(value, Mapping) else value
        if found is not None and not isinstance(found, Tensor):
            raise ModelError(f"training_step must return a loss, got {type(found).__name__}.")
        return found

    def prepared(self, batch: Any) -> Any:
        """The batch on the module's device, in the Trainer's precision."""
        batch = move_data_to_device(batch, self._trainer.strategy.root_device)
        return self._trainer.precision_plugin.convert_input(batch)

    def _clip(self) -> None:
        value = self._trainer.gradient_clip_val
        if not value:
            return
        parameters = [p for g in self._optimizer.param_groups for p in g["params"]]
        if self._trainer.gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, float(value))
        else:
            torch.nn.utils.clip_grad_norm_(parameters, float(value))


@contextmanager
def unlogged(trainer: L.Trainer) -> Iterator[None]:
    """Let what a step logs by itself, past ``self.log``, come to nothing for a while."""
    loggers = trainer.loggers
    try:
        trainer.loggers = [DummyLogger() for _ in loggers]
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def loop_left_alone(trainer: L.Trainer) -> Iterator[None]:
    """A ``configure_optimizers`` that asks how long training is makes the loop set up its data."""
    loop = trainer.fit_loop
    before = loop._combined_loader
    try:
        yield
    finally:
        loop._combined_loader = before


def _positional(step: Any) -> list[str]:
    parameters = inspect.signature(step).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ["batch", "batch_idx"]
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _read(configured: Any, module: L.LightningModule) -> tuple[Optimizer, list[Any]]:
    """The optimizer, and the schedulers that step with every batch, of ``configure_optimizers``."""
    optimizers: list[Any] = []
    schedulers: list[Any] = []
    parts = configured if isinstance(configured, tuple | list) else [configured]
    if len(parts) == 2 and all(isinstance(part, list) for part in parts):
        optimizers, schedulers = list(parts[0]), list(parts[1])
    else:
        for part in parts:
            if isinstance(part, Mapping):
                optimizers.append(part.get("optimizer"))
                schedulers += [part["lr_scheduler"]] if part.get("lr_scheduler") else []
            else:
                optimizers.append(part)
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise ModelError(
            f"a race needs one optimizer, and {type(module).__name__}.configure_optimizers gives "
            f"{len([o for o in optimizers if isinstance(o, Optimizer)])}; give one candidate, "
            "which is taken without a race."
        )
    return optimizers[0], [s for s in map(_by_batch, schedulers) if s is not None]


def _by_batch(entry: Any) -> Any:
    """The scheduler of an entry, if it steps with every batch."""
    if not isinstance(entry, Mapping) or entry.get("interval", "epoch") != "step":
        return None
    scheduler = entry.get("scheduler")
    return None if isinstance(scheduler, ReduceLROnPlateau) else scheduler
