"""What is kept of a module's constructor: by the module, and by a checkpoint to call it again."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import lightning as L
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim import Optimizer

from stablelightning.model.architecture import without_files

#: Makes parameter groups of a module for an optimizer, whose defaults it may read.
GroupsCallable = Callable[[nn.Module, Optimizer], list[dict[str, Any]]]

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Settings:
    """What a :class:`~stablelightning.StableMixin` was told, beside its task."""

    optimizer: OptimizerCallable | None = None
    scheduler: LRSchedulerCallable | None = None
    scheduler_interval: Literal["epoch", "step"] | None = None
    monitor: str = "val/loss"
    samples: int = 50
    parameter_groups: GroupsCallable | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Settings":
        # Nothing in it changes, and what makes a recipe's optimizer holds the whole command line
        # interface: a copy of the module would copy its trainer, loggers and data as well.
        return self


def keep_hyperparameters(module: L.LightningModule) -> None:
    """Keep the plain arguments of the constructor that is running, under ``module.hparams``.

    To be called from a base's ``__init__``. What counts are the arguments of the class that was
    called, not those of its bases: a base's ``task="regression"`` that the class passes itself
    would come twice when the checkpoint is loaded. Numbers, strings, booleans, ``None`` and
    containers of these are kept; the rest (modules, optimizers) could not be loaded by
    ``torch.load(weights_only=True)``. Under LightningCLI the recipe of the model is kept whole.

    Nothing is logged: Lightning refuses to log when a data module logs the same name with another
    value, and the user has not asked for it.

    Args:
        module: the module under construction.

    Example:
        >>> class Net(L.LightningModule):
        ...     def __init__(self, width, optimizer):
        ...         super().__init__()
        ...         keep_hyperparameters(self)
        >>> dict(Net(8, object()).hparams)
        {'width': 8}
    """
    constructor, bottom = _frames(module)
    # Lightning looks for arguments in the frames above the one it is given. There are none above
    # the bottom one, so it takes what LightningCLI brings, or else what it is handed.
    module.save_hyperparameters(logger=False, frame=bottom)
    if not module.hparams and constructor is not None:
        module.save_hyperparameters(_plain_arguments(constructor), logger=False, frame=bottom)
    for name, value in module.hparams.items():
        module.hparams[name] = without_files(value)


def _frames(module: L.LightningModule) -> tuple[FrameType | None, FrameType]:
    """The frame of the outermost ``__init__`` of this very object, and the bottom of the stack."""
    frame = inspect.currentframe()
    assert frame is not None
    constructor = None
    while True:
        names = frame.f_code.co_varnames
        is_init = frame.f_code.co_name == "__init__" and len(names) > 0
        if is_init and frame.f_locals.get(names[0]) is module:
            constructor = frame
        if frame.f_back is None:
            return constructor, frame
        frame = frame.f_back


def _plain_arguments(frame: FrameType) -> dict[str, Any]:
    names, _, keywords, values = inspect.getargvalues(frame)
    given = {name: values[name] for name in names[1:] if name in values}
    # Keyword-only arguments are not among getargvalues' names.
    code = frame.f_code
    only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    given |= {name: values[name] for name in only if name in values}
    given |= values.get(keywords, {}) if keywords is not None else {}
    return {name: value for name, value in given.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return type(value) in _PLAIN
