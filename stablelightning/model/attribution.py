"""Every weight of a model, what consumes its output and where it lies, from a watched forward."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stablelightning.model.branches import Branch, find_branches
from stablelightning.model.consumers import Consumer, Follower
from stablelightning.model.trace import Trace, watch
from stablelightning.model.weights import WeightUse, weight_uses


@dataclass(frozen=True)
class LayerRole:
    """One weight and its place in the network.

    Args:
        name: dotted name of the module that owns the weight.
        module: that module.
        kind: ``"linear"``, ``"conv"``, ``"transposed_conv"``, ``"recurrent"``, ``"attention"`` (the
            joint input projection of an attention module), ``"embedding"`` or ``"other"``.
        parameters: dotted names of the parameters that the weight is made of.
        consumer: what its output runs into.
        others: further consumers of its output, where there are several.
        depth: weights on the longest path before it.
        branch: the innermost residual branch that it is part of.
        uses: how often the forward uses it.
        is_input: whether it reads the model's input, no other weight between.
        is_output: whether the model returns its output, perhaps bent, with no weight after it.
    """

    name: str
    module: nn.Module
    kind: str
    parameters: tuple[str, ...]
    consumer: Consumer
    others: tuple[Consumer, ...] = ()
    depth: int = 0
    branch: Branch | None = None
    uses: int = 1
    is_input: bool = False
    is_output: bool = False


@dataclass
class Attribution:
    """What :func:`attribute` found.

    Args:
        layers: one for each weight, in the order of their first use.
        branches: residual branches, in the order of their additions.
        notes: what could not be followed, in words.
        depth: weights on the longest path through the model.
        plain_depth: weights on the longest stretch without a norm or a way around.
        trace: the watched forward itself.
    """

    layers: list[LayerRole]
    branches: list[Branch]
    notes: list[str]
    depth: int
    plain_depth: int
    trace: Trace = field(repr=False)

    def __getitem__(self, name: str) -> LayerRole:
        """The role of the layer of that dotted name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def attribute(
    model: nn.Module, inputs: Any, *, call: Callable[..., Any] | None = None
) -> Attribution:
    """Find what consumes each weight of a model, from one forward pass in eval.

    Args:
        model: any eager module; left as it was.
        inputs: a tensor, a tuple or list to spread, or a dict of keywords.
        call: what is called instead of the model itself.

    Returns:
        An :class:`Attribution`.

    Raises:
        DataError: the inputs do not fit the forward.
        ModelError: the model is scripted.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1))
        >>> [layer.consumer.name for layer in attribute(net, torch.zeros(1, 2)).layers]
        ['gelu', 'linear']
    """
    return read(model, watch(model, inputs, call=call))


def read(model: nn.Module, trace: Trace) -> Attribution:
    """The same, from a trace that is there already."""
    uses = weight_uses(model, trace)
    branches, way = find_branches(trace, uses)
    follower = Follower(trace, uses)
    first: dict[tuple[str, ...], WeightUse] = {}
    times: dict[tuple[str, ...], int] = {}
    for use in uses:
        first.setdefault(use.parameters, use)
        times[use.parameters] = times.get(use.parameters, 0) + 1
    layers = []
    for parameters, use in first.items():
        found = follower.consumers(use.output)
        chosen = found[0] if found else Consumer("linear")
        layers.append(
            LayerRole(
                name=use.name,
                module=use.module,
                kind=use.kind,
                parameters=parameters,
                consumer=chosen,
                others=tuple(found[1:]),
                depth=way.depth[use.operation.number],
                branch=_innermost(branches, use.operation.number),
                uses=times[parameters],
                is_input=way.depth[use.operation.number] == 0,
                is_output=use.operation.number in way.last,
            )
        )
    notes = [*trace.notes, *_unreached(model, layers)]
    return Attribution(layers, branches, notes, way.longest, way.plain, trace)


def _innermost(branches: list[Branch], number: int) -> Branch | None:
    around = [b for b in branches if number in b.members]
    return min(around, key=lambda b: len(b.members), default=None)


def _unreached(model: nn.Module, layers: list[LayerRole]) -> list[str]:
    reached = {name for layer in layers for name in layer.parameters}
    missed = [
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if name.endswith(("weight", "weight_ih_l0", "in_proj_weight"))
        and parameter.ndim >= 2
        and name not in reached
    ]
    return [f"{name or 'the model'}: the example did not reach it" for name in missed]
