"""Walking a model's modules, fast enough to do on every call."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from stablelightning.errors import ModelError
from stablelightning.words import reason_of


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module once, parents first: ``list(model.modules())`` at a fraction of its cost."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    pending: list[nn.Module | None] = [model]
    while pending:
        module = pending.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        if module._modules:
            pending.extend(reversed(module._modules.values()))
    return found


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter once: ``list(model.parameters())`` at a fraction of its cost.

    Example:
        >>> len(parameters_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))
        4
    """
    if (
        type(model).named_parameters is not nn.Module.named_parameters
    ):  # wrappers say what is theirs
        return list(model.parameters())
    found = {id(p): p for m in modules_of(model) for p in m._parameters.values() if p is not None}
    return list(found.values())


def content_of(container: Any) -> Any:
    """What a list, dict or set holds, as a plain one: many times as fast as ``copy.copy``."""
    if isinstance(container, list):
        return list(container)
    return dict(container) if isinstance(container, dict) else set(container)


def set_training(module: nn.Module, training: bool) -> None:
    """Set one module's own flag, past a module's slow ``__setattr__``."""
    if "training" in vars(module):
        vars(module)["training"] = training
    else:  # a property, as of scripted and compiled modules
        module.training = training


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another ``forward`` for a while, on the instance; hooks keep running."""
    own = {m: vars(m)["forward"] for m in forwards if "forward" in vars(m)}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)
            if module in own:
                vars(module)["forward"] = own[module]


def detached_copy(model: nn.Module) -> nn.Module:
    """Copy a model with everything in it, but for the trainer that a LightningModule belongs to.

    Raises:
        ModelError: it holds something that cannot be copied.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> detached_copy(net).weight is net.weight
        False
    """
    # A trainer holds loaders, loggers and the model itself; a memo says what stands in its place.
    trainers = {id(vars(m).get("_trainer")): None for m in modules_of(model)}
    trainers.pop(id(None), None)
    try:
        return copy.deepcopy(model, trainers)
    except Exception as error:  # locks, generators, tensors of a graph: each raises its own
        reason = reason_of(error)
        raise ModelError(
            f"{type(model).__name__} must be copied for this, and it cannot be ({reason}); keep "
            "what has no copies out of it."
        ) from error
