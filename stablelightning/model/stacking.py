"""Putting the weights of several networks into the places of one."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from stablelightning.errors import ModelError


def check_alike(networks: list[nn.Module]) -> None:
    """Refuse networks that differ in more than the values of their parameters and buffers.

    Raises:
        ModelError: they do; or there are none.
    """
    if not networks or not all(isinstance(network, nn.Module) for network in networks):
        raise ModelError(
            f"a stack needs one or more modules, got {len(networks)} entries; pass a list such as "
            "[make_network() for _ in range(5)]."
        )
    for network in networks:
        if any(is_lazy(p) for p in (*network.parameters(), *network.buffers())):
            raise ModelError(
                f"a stack needs networks whose shapes are known, and {type(network).__name__} has "
                "lazy layers; name their sizes."
            )
    first = _layout(networks[0])
    for number, network in enumerate(networks[1:], start=1):
        layout = _layout(network)
        if _kind(network) is not _kind(networks[0]) or layout != first:
            differ = [name for name in {**first, **layout} if first.get(name) != layout.get(name)]
            what = f"{min(differ)!r} differs" if differ else f"it is a {_kind(network).__name__}"
            raise ModelError(
                "networks in a stack must have equal parameters and buffers but for their values, "
                f"and in network {number} {what}; predict_ensemble takes networks of any kind."
            )


def _kind(network: nn.Module) -> type[nn.Module]:
    # A parametrized module has a class of its own.
    return parametrize.type_before_parametrizations(network)


def _layout(network: nn.Module) -> dict[str, tuple[Any, ...]]:
    state = {**named_tensors(network, "parameters"), **named_tensors(network, "buffers")}
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}


def named_tensors(network: nn.Module, kind: str) -> dict[str, Tensor]:
    """Every name of every parameter or buffer, under ``networks.``: tied ones are told twice."""
    named: Any = getattr(network, f"named_{kind}")(prefix="networks", remove_duplicate=False)
    return dict(named)


def places_of(network: nn.Module, kind: str) -> list[tuple[nn.Module, str, Tensor]]:
    """Where tensors are: ``kind`` is ``"_parameters"`` or ``"_buffers"``; tied ones twice."""
    return [
        (module, name, tensor)
        for module in network.modules()
        for name, tensor in getattr(module, kind).items()
        if tensor is not None
    ]


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of another one."""
    # By setattr: recurrent layers keep a list of their weights beside the parameters.
    setattr(module, name, tensor)


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """Values as a parameter or a buffer, as the tensor is one."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, tensor.requires_grad)
    return values


class Swap:
    """Puts other tensors in the places of a network's parameters and buffers for a while.

    What ``torch.func.functional_call`` does, for every place at once: a small network's step has no
    time for names.

    Attributes:
        stacks: the tensors that are there, tied ones once.
    """

    def __init__(self, network: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Tensor, int]] = []
        numbers: dict[int, int] = {}
        self.stacks: list[Tensor] = []
        for module in network.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is None:
                        continue
                    number = numbers.setdefault(id(tensor), len(self.stacks))
                    if number == len(self.stacks):
                        self.stacks.append(tensor)
                    self._places.append((held, name, tensor, number))

    @contextmanager
    def __call__(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Inside, these are in the places of ``stacks``.

        Raises:
            ModelError: another tensor was put into one of the places.
        """
        for held, name, _, number in self._places:
            held[name] = tensors[number]
        try:
            yield
            if any(held.get(name) is not tensors[n] for held, name, _, n in self._places):
                raise ModelError("a buffer is replaced instead of being written into")
        finally:
            for held, name, tensor, _ in self._places:
                held[name] = tensor


def _nothing() -> None:
    """In place of ``flatten_parameters``: cuDNN cannot lay out stacked weights."""


@torch.no_grad()
def stack_networks(networks: list[nn.Module]) -> nn.Module:
    """A copy of the first network, whose tensors are stacks of those of all."""
    code = copy.deepcopy(networks[0])
    others = [[*places_of(n, "_parameters"), *places_of(n, "_buffers")] for n in networks]
    made: dict[int, Tensor] = {}
    places = [*places_of(code, "_parameters"), *places_of(code, "_buffers")]
    for (module, name, tensor), *all_of_it in zip(places, *others, strict=True):
        if id(tensor) not in made:
            stack = torch.stack([theirs.detach() for _, _, theirs in all_of_it])
            made[id(tensor)] = like(tensor, stack)
        put(module, name, made[id(tensor)])
    for module in code.modules():
        if isinstance(module, nn.RNNBase):
            vars(module)["flatten_parameters"] = _nothing
    return code
