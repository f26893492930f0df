"""What an optimizer holds besides the parameters: copied, and given back to the bit."""

import copy
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class KeptOptimizer:
    """A copy of an optimizer's groups and states, to be given back in place.

    Unlike ``load_state_dict``, giving back converts no type, replaces no tensor where one of the
    same shape is there, and leaves nothing behind that was not there before.

    Args:
        optimizer: any; what it holds outside of ``param_groups`` and ``state`` is not seen.
        host: whether copies are kept in host memory.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> kept = KeptOptimizer(sgd)
        >>> weight.sum().backward(), sgd.step()
        (None, None)
        >>> kept.restore()
        >>> sgd.state_dict()["state"]
        {}
    """

    def __init__(self, optimizer: Optimizer, *, host: bool = False) -> None:
        self._optimizer = optimizer
        self._groups = copied_groups(optimizer)
        self._states = [_copied_state(optimizer, p, host) for p in _parameters(optimizer)]

    def restore(self) -> None:
        """Give the optimizer back what was copied; parameters stay as they are."""
        restore_groups(self._optimizer, self._groups)
        # Parameters of groups that were added since had no state.
        for parameter, kept in zip_longest(_parameters(self._optimizer), self._states):
            if parameter is not None:
                _restore_state(self._optimizer, parameter, kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain types."""
        return {"groups": copy.deepcopy(self._groups), "states": copy.deepcopy(self._states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what another has copied from an equal optimizer."""
        self._groups = copy.deepcopy(state["groups"])
        self._states = copy.deepcopy(state["states"])


def copied_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Copy the settings of every parameter group: rates, momenta, counters."""
    return [
        {name: _copied(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


@torch.no_grad()
def restore_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Give every parameter group its settings back; a tensor stays the same tensor."""
    for group, kept in zip(optimizer.param_groups, groups, strict=False):
        for name in [name for name in group if name not in kept and name != "params"]:
            del group[name]
        for name, value in kept.items():
            present = group.get(name)
            if isinstance(value, Tensor) and isinstance(present, Tensor):
                present.copy_(value)
            else:
                group[name] = _copied(value)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _copied_state(optimizer: Optimizer, parameter: Tensor, host: bool) -> dict[str, Any] | None:
    if parameter not in optimizer.state:  # a defaultdict: asking would make an entry
        return None
    state = optimizer.state[parameter]
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {
        "tensors": {
            n: t.detach().to("cpu" if host else t.device, copy=True) for n, t in tensors.items()
        },
        # A step counter may live on the host while all else is on the parameter's device.
        "elsewhere": [n for n, t in tensors.items() if t.device != parameter.device],
        "others": {n: copy.deepcopy(v) for n, v in state.items() if n not in tensors},
    }


@torch.no_grad()
def _restore_state(optimizer: Optimizer, parameter: Tensor, kept: dict[str, Any] | None) -> None:
    if kept is None:
        optimizer.state.pop(parameter, None)
        return
    state = optimizer.state[parameter]
    for name in [n for n in state if n not in kept["tensors"] and n not in kept["others"]]:
        del state[name]
    for name, value in kept["tensors"].items():
        present = state.get(name)
        if isinstance(present, Tensor) and present.shape == value.shape:
            present.copy_(value)
        else:
            device = value.device if name in kept["elsewhere"] else parameter.device
            state[name] = value.to(device, copy=True)
    state.update(copy.deepcopy(kept["others"]))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)
