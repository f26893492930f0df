"""What every rule is given, and how it says what it found."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stablelightning.model.diagnosis import Finding, Severity
from stablelightning.model.measurement import MeasuredLayer, Measurement
from stablelightning.model.trial import Trial


@dataclass
class Examination:
    """Everything that is known about a model before its first step.

    Args:
        model: the model, in training mode.
        measurement: what a watched training step showed.
        optimizer: what it will be trained with, if that is known.
        trial: what one step of the optimizer did, if one was tried.
        clipped: whether gradients will be clipped; ``None`` where nobody said.
        faulty: layers whose own weights an earlier rule found at fault, and the factor by which
            they change what passes them: what happens elsewhere because of it is no finding.
        flat: the same for the activations behind layers.
    """

    model: nn.Module
    measurement: Measurement
    optimizer: torch.optim.Optimizer | None = None
    trial: Trial | None = None
    clipped: bool | None = None
    faulty: dict[str, float] = field(default_factory=dict)
    flat: dict[str, float] = field(default_factory=dict)

    @property
    def layers(self) -> list[MeasuredLayer]:
        """The weight layers whose numbers are finite, in order of execution."""
        return [layer for layer in self.measurement.layers if layer.output.finite]

    @property
    def promised(self) -> float | None:
        """The share of the loss that a trial step promises to remove; ``None`` without a trial."""
        trial = self.trial
        if trial is None or not (math.isfinite(trial.loss_before) and trial.loss_before > 0):
            return None
        return trial.promised / trial.loss_before if math.isfinite(trial.promised) else math.inf

    def blame_weights(self, layer: MeasuredLayer, factor: float) -> None:
        """Remember that the weights of a layer change the scale of what passes by ``factor``."""
        self.faulty[layer.name] = factor

    def blame_activation(self, layer: MeasuredLayer, factor: float) -> None:
        """Remember that only so much of the gradient gets through the activation of a layer."""
        self.flat[layer.name] = factor

    @property
    def blamed(self) -> bool:
        """Whether some layer was found to be at fault by itself."""
        return bool(self.faulty or self.flat)

    def is_behind_a_fault(self, layer: MeasuredLayer) -> bool:
        """Whether a layer that runs before this one is at fault by itself."""
        at_fault = {*self.faulty, *self.flat}
        return any(x.name in at_fault for x in self.layers if x.index < layer.index)


Rule = Callable[[Examination], Iterator[Finding]]


def about(
    layers: Sequence[MeasuredLayer],
    code: str,
    severity: Severity,
    message: str,
    *,
    remedy: str,
    evidence: dict[str, float] | None = None,
    cure: str | None = None,
    **cure_arguments: Any,
) -> Finding:
    """One finding about several layers: it is named after the first."""
    names = tuple(dict.fromkeys(layer.name for layer in layers))
    return Finding(
        code=code,
        severity=severity,
        module=names[0] if names else "",
        message=message,
        evidence={"layers": float(len(names)), **(evidence or {})},
        remedy=remedy,
        cure=cure,
        cure_arguments=cure_arguments,
        modules=names,
    )


def others(layers: Sequence[MeasuredLayer]) -> str:
    """How a message goes on where it is about more than the first layer.

    Example:
        >>> others([])
        ''
    """
    return f" (the first of {len(layers)} layers)" if len(layers) > 1 else ""
