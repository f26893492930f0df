"""Which optimizer holds which parameter, by identity; and those that are in none, taken in."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer


def missing_parameters(
    optimizers: Iterable[Any], parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """The parameters that are in no group of any optimizer; identity decides, never value.

    Args:
        optimizers: of torch, or wrapped by Lightning; only read.
        parameters: by name.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> sgd = torch.optim.SGD(net[1].parameters(), lr=0.1)
        >>> list(missing_parameters([sgd], dict(net.named_parameters())))
        ['0.weight', '0.bias']
    """
    held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    return {name: p for name, p in parameters.items() if id(p) not in held}


def take_in_(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    *,
    like: Sequence[nn.Parameter],
) -> None:
    """Put parameters into groups that exist, so that schedulers know all the groups there will be.

    Each goes where ``like`` are: a matrix to the first of those that is one, a vector to the first
    that is one, so that a vector is not decayed where those of the head are not.

    Args:
        optimizers: their groups are changed in place; without any group nothing happens.
        parameters: by name, in none of the groups.
        like: parameters whose settings they get, such as those of the head, first choice first.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> sgd = torch.optim.SGD(net[1].parameters(), lr=0.1)
        >>> take_in_([sgd], dict(net[0].named_parameters()), like=list(net[1].parameters()))
        >>> len(sgd.param_groups), len(sgd.param_groups[0]["params"])
        (1, 4)
    """
    groups: list[dict[str, Any]] = [g for o in optimizers for g in o.param_groups]
    if not groups:
        return
    home = {id(p): group for group in groups for p in group["params"]}
    models = [p for p in like if id(p) in home]
    for name, parameter in parameters.items():
        alike = [p for p in models if _is_matrix(p) == _is_matrix(parameter)]
        group = home[id((alike or models)[0])] if models else groups[0]
        group["params"].append(parameter)  # LBFGS and others hold this very list
        if "param_names" in group:
            group["param_names"].append(name)


def _is_matrix(parameter: nn.Parameter) -> bool:
    return not nn.parameter.is_lazy(parameter) and parameter.ndim >= 2
