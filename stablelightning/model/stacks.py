"""Plain stacks: weights in a row, each read by the next alone, through one scalar function."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stablelightning.model.attribution import Attribution, LayerRole
from stablelightning.model.trace import Operation
from stablelightning.model.weights import WeightUse, weight_uses

#: Views that keep the order of the units: halves stay halves. A flattened image counts its channels
#: first, so that its halves are those of the channels.
_ORDERLY = (
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "flatten",
    "squeeze",
    "unsqueeze",
    "alias",
    "detach",
    "clone",
    "contiguous",
    "_to_copy",
    "constant_pad_nd",
)
#: Poolings that are linear; a maximum is not.
_AVERAGES = (
    "mean",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "_adaptive_avg_pool1d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
)
_KINDS = ("linear", "conv", "transposed_conv")


@dataclass(frozen=True)
class Stack:
    """A plain stack.

    Args:
        layers: two or more, in order; all but the last run into one scalar function, and from
            there into the next layer only.
    """

    layers: tuple[LayerRole, ...]

    @property
    def functions(self) -> list[Callable[[Tensor], Tensor]]:
        """The functions between the layers."""
        return [
            role.consumer.function
            for role in self.layers[:-1]
            if role.consumer.function is not None
        ]


def plain_stacks(attribution: Attribution, *, model: object) -> list[Stack]:
    """Find the longest plain stacks of a model: no norm, no way around, no second reader.

    Args:
        attribution: of the model.
        model: the model.

    Returns:
        Stacks that share no layer, in order of execution.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from stablelightning.model.attribution import attribute
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
        >>> (stack,) = plain_stacks(attribute(net, torch.zeros(1, 2)), model=net)
        >>> [layer.name for layer in stack.layers]
        ['0', '2']
    """
    uses = weight_uses(model, attribution.trace)  # type: ignore[arg-type]
    roles = {role.parameters: role for role in attribution.layers}
    by_number = {use.operation.number: use for use in uses}
    returned = {id(value) for value in attribution.trace.outputs}
    before: dict[tuple[str, ...], tuple[str, ...]] = {}
    for use in uses:
        previous = _reads(use.operation, by_number, returned)
        if previous is not None and _joins(roles[previous.parameters], roles[use.parameters]):
            before[use.parameters] = previous.parameters
    readers: dict[tuple[str, ...], int] = {}
    for parameters in before.values():
        readers[parameters] = readers.get(parameters, 0) + 1
    chains: list[list[LayerRole]] = []
    tail: dict[tuple[str, ...], list[LayerRole]] = {}
    for role in attribution.layers:
        previous_one = before.get(role.parameters, ())
        if previous_one in tail and readers[previous_one] == 1:
            chain = tail.pop(previous_one)
            chain.append(role)
        else:
            chain = [role]
            chains.append(chain)
        tail[role.parameters] = chain
    return [Stack(tuple(chain)) for chain in chains if len(chain) > 1]


def _joins(first: LayerRole, second: LayerRole) -> bool:
    """Whether the first runs, through its own function only, into the second."""
    consumer = first.consumer
    return (
        first.kind in _KINDS
        and second.kind in _KINDS
        and first.uses == second.uses == 1
        and consumer.function is not None
        and not first.others
        and not {"norm", "add", "cat", "slice", "gate"} & set(consumer.route)
        and not first.is_output
    )


def _reads(
    operation: Operation, uses: dict[int, WeightUse], returned: set[int]
) -> WeightUse | None:
    """The one weight whose output, through pointwise operations and orderly views, is read here.

    None where the model returns what is between: whoever gets it did not ask for halves.
    """
    found: WeightUse | None = None
    pending = [v for v in operation.inputs() if v.moving]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        maker = value.maker
        if maker is None or id(value) in returned or not _is_passed(maker, uses):
            return None
        previous = uses.get(maker.number)
        if previous is None:
            pending += [v for v in maker.inputs() if v.moving]
        elif found is not None and found is not previous:
            return None
        else:
            found = previous
    return found


def _is_passed(maker: Operation, uses: dict[int, WeightUse]) -> bool:
    if maker.number in uses or maker.kind in ("pointwise", "add", "multiply", "dropout"):
        return True
    if maker.kind == "pool":
        return maker.name in _AVERAGES
    return maker.kind == "view" and maker.name in _ORDERLY
