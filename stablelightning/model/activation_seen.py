"""Activations that no name gives away, seen in a watched forward pass."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stablelightning.errors import StableLightningError
from stablelightning.model.activation_names import is_activation
from stablelightning.model.attribution import Attribution, attribute


@dataclass
class SeenActivations:
    """What a forward pass showed beside the activations that are known by their class.

    Args:
        modules: leaf modules of other packages that bend the output of a layer.
        functions: pairs of the dotted path of a module and the function that its own code applies
            to the output of a layer.
    """

    modules: set[nn.Module] = field(default_factory=set)
    functions: list[tuple[str, str]] = field(default_factory=list)


def activations_seen(model: nn.Module, example: Any) -> SeenActivations:
    """Watch one forward pass, and look in which modules the outputs of layers are bent.

    Args:
        model: any module; it is left as it was.
        example: inputs of one batch.

    Returns:
        What was seen; nothing where the forward cannot be watched.

    Example:
        >>> import torch
        >>> class Square(nn.Module):
        ...     def forward(self, x):
        ...         return x * x.relu()
        >>> net = nn.Sequential(nn.Linear(2, 3), Square(), nn.Linear(3, 1))
        >>> activations_seen(net, torch.randn(4, 2)).modules
        {Square()}
    """
    try:
        attribution = attribute(model, example)
    except (StableLightningError, NotImplementedError, RuntimeError):
        return SeenActivations()
    return _read(model, attribution)


def _read(model: nn.Module, attribution: Attribution) -> SeenActivations:
    seen = SeenActivations()
    there = dict(model.named_modules())
    for layer in attribution.layers:
        for consumer in (layer.consumer, *layer.others):
            place = there.get(consumer.module)
            if consumer.function is None or place is None or is_activation(place):
                continue
            if could_be_activation(place):
                seen.modules.add(place)
            elif _applies_by_itself(place):
                seen.functions.append((consumer.module, consumer.name))
    seen.functions = list(dict.fromkeys(seen.functions))
    return seen


def could_be_activation(module: nn.Module) -> bool:
    """Whether a module has no others in it and no matrix, and is none of torch's.

    Example:
        >>> could_be_activation(nn.Dropout()), could_be_activation(nn.Linear(1, 1))
        (False, False)
    """
    if _is_torchs(module) or next(module.children(), None) is not None:
        return False
    return all(p.ndim <= 1 for p in module.parameters())


def _applies_by_itself(module: nn.Module) -> bool:
    """A module with others in it, no activation among them whose output it might only scale."""
    children = list(module.children())
    return bool(children) and not _is_torchs(module) and not any(map(is_activation, children))


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")
