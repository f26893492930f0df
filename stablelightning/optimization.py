"""What StableMixin gives Lightning: the optimizer, its groups, its schedule, checked before use."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from stablelightning.callbacks.optimizer_modes import SwitchOptimizerModes, has_modes
from stablelightning.callbacks.training_length import training_epochs, training_steps
from stablelightning.errors import (
    ModelError,
    RecipeError,
    StableLightningError,
    StableLightningWarning,
)
from stablelightning.hyperparameters import Settings
from stablelightning.model.optimizer_settings import harmful_settings
from stablelightning.model.schedule_length import (
    Interval,
    check_length,
    interval_of,
    schedule_config,
    training_of,
)

_T = TypeVar("_T")

#: Set while the doctor looks on, who tells what is wrong himself.
_EXAMINED: ContextVar[bool] = ContextVar("examined", default=False)


@contextmanager
def examined() -> Iterator[None]:
    """Make optimizers and schedules without judging them: somebody is about to.

    Example:
        >>> import torch
        >>> module = L.LightningModule()
        >>> module.weight = nn.Parameter(torch.ones(1))
        >>> endless = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.99999)
        >>> with examined():
        ...     type(configured(module, Settings(optimizer=endless))).__name__
        'SGD'
    """
    token = _EXAMINED.set(True)
    try:
        yield
    finally:
        _EXAMINED.reset(token)


def configured(module: L.LightningModule, settings: Settings) -> Any:
    """Make what ``configure_optimizers`` returns.

    Schedules that were not told their length get that of the Trainer's training, and step with
    every step or every epoch as they are made to. What is known to hurt is refused or warned of.

    Args:
        module: attached to a Trainer where the schedule is to be filled in or checked.
        settings: of its constructor.

    Raises:
        RecipeError: a setting that nothing good can come of; a schedule that ends before training;
            a plateau of a metric that nobody will log.
        ModelError: ``parameter_groups`` lost or added parameters.

    Example:
        >>> import torch
        >>> module = L.LightningModule()
        >>> module.weight = nn.Parameter(torch.ones(1))
        >>> type(configured(module, Settings())).__name__
        'Adam'
    """
    optimizer = _optimizer(module, settings)
    if not _EXAMINED.get():
        _judge(optimizer, module)
    if settings.scheduler is None:
        return optimizer
    length = _Length(module, settings.scheduler_interval)
    with training_of(length.filled):
        scheduler = _made(settings.scheduler, optimizer, "scheduler")
    config = schedule_config(scheduler, monitor=settings.monitor)
    config["interval"] = settings.scheduler_interval or interval_of(scheduler)
    if not _EXAMINED.get():
        _check_plateau(module, config)
        length.compare(config)
    return {"optimizer": optimizer, "lr_scheduler": config}


def _optimizer(module: L.LightningModule, settings: Settings) -> Optimizer:
    # Not a default of the argument: a recipe that names another optimizer would inherit Adam's
    # own settings (jsonargparse merges them), such as a weight decay of 0.
    make: Callable[[Any], Optimizer] = settings.optimizer or Adam
    optimizer = _made(make, module.parameters(), "optimizer")
    for_model = getattr(optimizer, "groups_for", None)
    if settings.parameter_groups is None and not callable(for_model):
        return optimizer
    groups = settings.parameter_groups
    made = None if groups is None else groups(module, optimizer)
    made = for_model(module, made) if callable(for_model) else made
    _check_complete(module, made)
    return _made(make, made, "optimizer")


def _made(make: Callable[[Any], _T], argument: Any, what: str) -> _T:
    try:
        return make(argument)
    except StableLightningError:
        raise
    except ValueError as error:  # what torch says of settings that it cannot take
        raise RecipeError(
            f"the settings of the {what} must suit it, and it refuses them: "
            f"{str(error).rstrip('.')}; mend them where the {what} is made."
        ) from error


def _check_complete(module: nn.Module, groups: Any) -> None:
    held = [id(p) for group in groups for p in group["params"]]
    expected = {id(p) for p in module.parameters()}
    if len(held) != len(set(held)) or set(held) != expected:
        raise ModelError(
            "parameter_groups must hold each parameter of the module once, got "
            f"{len(held)} entries for {len(set(held) & expected)} of {len(expected)}; "
            "put those that are not to move into a group of their own, frozen."
        )


def _judge(optimizer: Optimizer, module: L.LightningModule) -> None:
    """Refuse what nothing good can come of, and warn of what is seldom meant."""
    trainer = module._trainer
    if has_modes(optimizer) and trainer is not None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, SwitchOptimizerModes) for callback in callbacks):
            raise RecipeError(
                f"{type(optimizer).__name__} trains other weights than it means, and needs "
                "SwitchOptimizerModes among the callbacks; add it (--stable.optimizer_modes="
                "SwitchOptimizerModes on the line)."
            )
    for found in harmful_settings(optimizer, module):
        words = f"{type(optimizer).__name__}: {found.message} Remedy: {found.remedy}"
        if found.severity == "error":
            raise RecipeError(words)
        rank_zero_warn(words, category=StableLightningWarning)


def _check_plateau(module: L.LightningModule, config: dict[str, Any]) -> None:
    """Refuse a plateau of a validation that does not take place, before the first epoch is over."""
    trainer, monitor = module._trainer, config["monitor"]
    if not isinstance(config["scheduler"], ReduceLROnPlateau) or trainer is None:
        return
    if str(monitor).startswith("val") and not trainer.enable_validation and not trainer.barebones:
        raise RecipeError(
            f"{type(config['scheduler']).__name__} watches {monitor!r}, and there is no validation "
            "that would log it; give validation data, or set monitor to a key that is logged, such "
            "as 'train/loss_epoch'."
        )


class _Length:
    """How often the schedule will step; asked for at most once, since data may have to be read."""

    def __init__(self, module: L.LightningModule, interval: Interval | None) -> None:
        self._trainer = module._trainer
        self._interval = interval

    def filled(self) -> int:
        """For a schedule that was not told.

        Raises:
            RecipeError: there is no Trainer, or it has no end.
        """
        if self._trainer is None:
            raise RecipeError(
                "total_steps must be given where there is no Trainer to fill it in, got None."
            )
        if self._interval != "epoch":
            return training_steps(self._trainer)
        epochs = training_epochs(self._trainer)
        if not math.isfinite(epochs):
            raise RecipeError(
                "a schedule by epochs needs max_epochs in the Trainer, got none; set it, or let "
                "the schedule count steps (scheduler_interval: null)."
            )
        return int(epochs)

    def compare(self, config: dict[str, Any]) -> None:
        """Say what does not fit together; where the length cannot be known, nothing is said."""
        trainer = self._trainer
        if trainer is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if config["interval"] == "epoch":
            epochs = training_epochs(trainer)
            training = int(epochs) if math.isfinite(epochs) else 0
        else:
            try:
                training = training_steps(trainer)
            except RecipeError:  # without an end, every schedule is shorter, and meant so
                return
        words = check_length(config["scheduler"], training, unit=config["interval"])
        if words is not None:
            rank_zero_warn(words, category=StableLightningWarning)
