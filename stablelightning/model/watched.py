"""What a watch writes down of layers, norms and losses while a training step runs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from stablelightning.model.attribution import LayerRole
from stablelightning.model.observe import ActivationSignal, FunctionShape, TensorSignal


@dataclass
class Watched:
    """One weight layer as it ran; of several calls, the first counts and gradients are summed."""

    name: str
    module: nn.Module
    kind: str
    index: int
    role: LayerRole | None = None
    input: TensorSignal | None = None
    output: TensorSignal | None = None
    activation: ActivationSignal | None = None
    units: int | None = None
    shape: FunctionShape | None = None
    calls: int = 0
    reads: set[int] = field(default_factory=set)
    gates: bool = False
    in_graph: bool = False
    norm: str = ""
    dtype: torch.dtype = torch.float32
    gradient_squares: list[Tensor] = field(default_factory=list)
    gradient_lost: list[Tensor] = field(default_factory=list)
    gradient_values: int = 0


@dataclass(frozen=True)
class Bent:
    """What an activation made, and the layers that it was made from."""

    layers: tuple[Watched, ...]


@dataclass
class WatchedNorm:
    """One batch norm as it ran.

    Args:
        name: dotted name.
        rows: values for each channel of its first call.
        examples: rows of its first input.
        training: whether it normalises by the statistics of the batch.
        recurrent: whether a later call read what an earlier one had made.
        after_dropout: name of the dropout whose output it read, no weight or norm between.
    """

    name: str
    rows: int
    examples: int
    training: bool
    recurrent: bool = False
    after_dropout: str | None = None


@dataclass
class LossCall:
    """One call of a loss function of torch, with what it was given."""

    name: str
    input: Tensor
    after: str


def kind_of(module: nn.Module, role: LayerRole | None) -> str:
    """The kind of a weight layer, in the words of :class:`LayerRole`."""
    if role is not None:
        return role.kind
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, _ConvTransposeNd):
        return "transposed_conv"
    return "conv" if isinstance(module, _ConvNd) else "linear"
