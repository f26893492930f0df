"""Training for a while as if it had not been: what a step changes, anywhere in a Trainer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stablelightning.callbacks.contestant import unlogged
from stablelightning.callbacks.unseen import unseen_by_callbacks
from stablelightning.model.kept_optimizer import KeptOptimizer
from stablelightning.model.modules import content_of, modules_of
from stablelightning.model.preserve import preserved
from stablelightning.model.step import silenced
from stablelightning.model.trust import is_trusted

_CONTAINERS = (dict, list, set)
#: Of every module, and preserved with it.
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@contextmanager
def taken_back(
    trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
) -> Iterator[None]:
    """Inside, training may go on; after it, nothing has been.

    Args:
        trainer: in its fit loop.
        pl_module: its module.
        optimizer: that of the module.
    """
    with ExitStack() as stack:
        stack.enter_context(_kept_nested(pl_module))
        stack.enter_context(preserved(pl_module, moved=True))
        stack.enter_context(_kept_attributes(optimizer))
        stack.callback(KeptOptimizer(optimizer).restore)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            stack.enter_context(_kept_attributes(scaler))
        stack.enter_context(_kept_progress(trainer))
        stack.enter_context(unseen_by_callbacks(trainer, pl_module))
        stack.enter_context(unlogged(trainer))
        stack.enter_context(silenced(pl_module))
        yield


@contextmanager
def _kept_attributes(thing: Any) -> Iterator[None]:
    """Leave an object's attributes as they are: which there are, and what tensors hold."""
    present = vars(thing)
    before = dict(present)
    numbers = {k: v.detach().clone() for k, v in before.items() if isinstance(v, Tensor)}
    entries = {k: dict(v) for k, v in before.items() if isinstance(v, dict) and k != "state"}
    try:
        yield
    finally:
        present.clear()
        present.update(before)
        for name, value in numbers.items():
            before[name].data.copy_(value)
        for name, content in entries.items():
            before[name].clear()
            before[name].update(content)


@contextmanager
def _kept_progress(trainer: L.Trainer) -> Iterator[None]:
    """Leave the Trainer's counters of batches and steps as they are."""
    loop = trainer.fit_loop.epoch_loop
    counters: list[Any] = [loop.batch_progress, loop.automatic_optimization.optim_progress]
    states = [counter.state_dict() for counter in counters]
    stop = trainer.should_stop
    try:
        yield
    finally:
        trainer.should_stop = stop
        for counter, state in zip(counters, states, strict=True):
            counter.load_state_dict(state)


@contextmanager
def _kept_nested(model: nn.Module) -> Iterator[None]:
    """Leave containers inside of containers as they are, and the tensors in them.

    What modules hold themselves is preserved with them, one level deep: that is what a forward
    moves. A training step may also write into lists of a dict of its own.
    """
    attributes = (vars(m).items() for m in modules_of(model) if not is_trusted(m))
    held = [value for items in attributes for name, value in items if name not in _REGISTRIES]
    kept: dict[int, tuple[Any, Any]] = {}
    pending = [entry for value in held for entry in _entries(value)]
    while pending:
        value = pending.pop()
        if id(value) not in kept:
            plain = value.detach().clone() if isinstance(value, Tensor) else content_of(value)
            kept[id(value)] = value, plain
            pending += _entries(value)
    try:
        yield
    finally:
        for value, content in kept.values():
            if isinstance(value, Tensor):
                value.data.resize_(content.shape).copy_(content)
            elif isinstance(value, list):
                value[:] = content
            else:
                value.clear()
                value.update(content)


def _entries(value: Any) -> list[Any]:
    """What a container holds that can itself be written into, parameters excepted."""
    if not isinstance(value, _CONTAINERS):
        return []
    entries = value.values() if isinstance(value, dict) else value
    return [e for e in entries if isinstance(e, _CONTAINERS) or _is_plain(e)]


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return False
    return value.layout is torch.strided and not value.is_meta
