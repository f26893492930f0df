"""What a network learned elsewhere, taken over by a model that has a head of its own."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stablelightning.errors import ModelError
from stablelightning.model.head import replace_head
from stablelightning.model.loaded import mark_loaded
from stablelightning.model.structure import find_heads, weight_layers

#: Where a module keeps the network that it trains, by a convention of this package.
_NETWORK = "network"


def inner_network(module: nn.Module) -> tuple[str, nn.Module]:
    """The network inside of a module that trains it, and its name there.

    Its attribute ``network``, or else the only child that has layers with weights.

    Args:
        module: such as a LightningModule; not changed.

    Raises:
        ModelError: there are several such children, or none.

    Example:
        >>> inner_network(nn.ModuleDict({"body": nn.Linear(2, 3), "loss": nn.MSELoss()}))
        ('body', Linear(in_features=2, out_features=3, bias=True))
    """
    children = {name: child for name, child in module.named_children() if weight_layers(child)}
    if _NETWORK in children:
        return _NETWORK, children[_NETWORK]
    if len(children) != 1:
        raise ModelError(
            f"{type(module).__name__} must hold its network in one child, by which it is known, "
            f"got {', '.join(children) or 'none'}; call that of the network 'network'."
        )
    return next(iter(children.items()))


def give_outputs(model: nn.Module, num_outputs: int | None) -> None:
    """Give a model a fresh head of another size, unless it has that size.

    Args:
        model: changed in place.
        num_outputs: ``None`` leaves the model.

    Raises:
        ModelError: it has no head that could be replaced.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> give_outputs(net, 7)
        >>> net[2].out_features
        7
    """
    heads = find_heads(model)
    sizes = {getattr(h, "out_features", getattr(h, "out_channels", None)) for h in heads}
    if num_outputs is not None and sizes != {num_outputs}:
        replace_head(model, num_outputs)


def below_head(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model without those of its head, under their names.

    Args:
        model: not changed; the tensors are its own.

    Raises:
        ModelError: it has no layer with weights, or layers whose sizes are not known yet.

    Example:
        >>> sorted(below_head(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))))[:2]
        ['0.bias', '0.num_batches_tracked']
    """
    values = dict(chain(model.named_parameters(), model.named_buffers()))
    lazy = [name for name, value in values.items() if is_lazy(value)]
    if lazy:
        raise ModelError(
            f"layers must have sizes to take over what others learned, and {lazy[0]} has none yet; "
            "run the model once before."
        )
    heads = {id(p) for head in find_heads(model) for p in (*head.parameters(), *head.buffers())}
    return {name: value for name, value in values.items() if id(value) not in heads}


def take_over(model: nn.Module, values: Mapping[str, Tensor]) -> list[str]:
    """Write values below a model's head, in place, and count them as loaded.

    Args:
        model: parameters and buffers keep their identity, device and dtype.
        values: by name; those of the head, of other shapes and of names that the model does not
            have are passed over.

    Returns:
        The names that were written.

    Raises:
        ModelError: not one fits.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
        >>> take_over(net, {"0.weight": torch.ones(3, 2), "2.bias": torch.ones(5)})
        ['0.weight']
    """
    own = below_head(model)
    fitting = {n: v for n, v in values.items() if n in own and own[n].shape == v.shape}
    if not fitting:
        raise ModelError(
            f"what was learned must fit {type(model).__name__} below its head, and none of "
            f"{len(values)} tensors does; pretrain the same network."
        )
    with torch.inference_mode(False), torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    mark_loaded(model, fitting)
    return list(fitting)
