"""What a watched training step showed: every layer's place, weights and signal."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from stablelightning.functional.signals import log_slope
from stablelightning.model.attribution import Attribution, LayerRole
from stablelightning.model.branches import Branch
from stablelightning.model.first_fault import FirstFault
from stablelightning.model.observe import ActivationSignal, TensorSignal
from stablelightning.model.watched import LossCall, WatchedNorm
from stablelightning.model.weight_statistics import WeightStatistics


@dataclass
class MeasuredLayer:
    """One weight layer: its place, its weights, and its signal forward and backward.

    Args:
        name: dotted name.
        module: the layer.
        kind: ``"linear"``, ``"conv"``, ``"recurrent"``, ...
        index: place in the order of execution.
        role: its place in the network; ``None`` where only training runs it.
        weights: statistics of its weights.
        input: signal of its first input; ``None`` for indices.
        output: signal of its output.
        activation: what the function that consumes it does; ``None`` for none.
        gradient_norm: norm of the loss's gradient at its output, all values; NaN without one,
            infinite where it is not a number.
        gradient_rms: root mean square of the same.
        weight_gradient: norm of the gradient of its parameters; NaN without one.
        calls: how often the forward ran it.
        unavoidable: whether every path from the inputs to the loss leads through it: what vanishes
            here has vanished for all before it.
        gates: whether its signal ends in gates, which scale another signal.
        ends: whether the loss is made from its output.
        norm: dotted name of the norm between it and its activation, ``""`` without one.
    """

    name: str
    module: nn.Module
    kind: str
    index: int
    role: LayerRole | None
    weights: WeightStatistics | None
    input: TensorSignal | None
    output: TensorSignal
    activation: ActivationSignal | None
    gradient_norm: float
    gradient_rms: float
    weight_gradient: float
    calls: int
    unavoidable: bool = True
    gates: bool = False
    ends: bool = False
    norm: str = ""

    @property
    def depth(self) -> int:
        """Weight layers on the longest path before it."""
        return self.role.depth if self.role is not None else self.index

    @property
    def branch(self) -> Branch | None:
        """The residual branch that it is part of."""
        return None if self.role is None else self.role.branch

    @property
    def is_output(self) -> bool:
        """Whether its output is what the model returns, or the loss is given."""
        return self.ends or (self.role is not None and self.role.is_output)

    @property
    def is_input(self) -> bool:
        """Whether it reads the model's input."""
        return self.role is not None and self.role.is_input

    @property
    def gradient(self) -> float:
        """Norm of the gradient; where a norm follows, at what the norm gives.

        Behind a norm the scale of a layer's output is arbitrary, and its gradient goes as the
        inverse of it.
        """
        return self.gradient_norm * (self.output.std if self.normalised else 1.0)

    @property
    def consumer(self) -> str:
        """What consumes its output, by name."""
        if self.ends and self.activation is None:
            return "linear"  # a softmax inside the loss is the loss's own
        if self.role is not None:
            return self.role.consumer.name
        return "linear" if self.activation is None else self.activation.name

    @property
    def normalised(self) -> bool:
        """Whether a norm follows before anything else bends the signal."""
        return self.role is not None and self.role.consumer.normalised


@dataclass
class Measurement:
    """What one watched training step showed.

    Args:
        layers: weight layers in order of execution.
        attribution: the roles of the layers; ``None`` if the forward could not be followed.
        norms: batch norms.
        losses: calls of torch's loss functions.
        loss: value of the loss.
        inputs: signal of each floating input.
        examples: size of the batch.
        gradients: gradient of each parameter that got one.
        underflow: share of gradient values lost to the dtype in use.
        fault: the first number that is not finite; ``None`` if all are.
        silent_heads: names of output layers whose weights are all zero.
        notes: what could not be done, in words.
        modules: every module by its dotted name.
    """

    layers: list[MeasuredLayer]
    attribution: Attribution | None
    norms: list[WatchedNorm]
    losses: list[LossCall]
    loss: float
    inputs: list[TensorSignal]
    examples: int
    gradients: dict[nn.Parameter, Tensor] = field(repr=False)
    underflow: float = 0.0
    fault: FirstFault | None = None
    silent_heads: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def trunk(self) -> list[MeasuredLayer]:
        """The layers that every gradient must pass: no way leads around them."""
        return [layer for layer in self.layers if layer.unavoidable]

    def forward_slope(self) -> float:
        """Slope of ln std over depth; outputs, embeddings and gates have scales of their own."""
        hidden = [x for x in self.layers if not (x.is_output or x.gates or x.kind == "embedding")]
        return log_slope([x.output.std for x in hidden], [x.depth for x in hidden])

    def gradient_slope(self) -> float:
        """Slope of ln gradient norm over depth, on the trunk."""
        trunk = [x for x in self.trunk if x.kind != "embedding"]
        return log_slope([x.gradient for x in trunk], [x.depth for x in trunk])
