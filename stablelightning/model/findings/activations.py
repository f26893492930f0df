"""Findings about what activations do with their input: dead, saturated, off centre."""

import math
from collections.abc import Iterator

from stablelightning.model.diagnosis import Finding, Severity
from stablelightning.model.findings.examination import Examination, about, others
from stablelightning.model.measurement import MeasuredLayer

#: Share of dead units from which training is in danger (issue trackers and papers speak of 40%).
MANY_DEAD = 0.4
#: Share from which hardly a unit is left to learn.
MOST_DEAD = 0.9
#: Dead units that their bias alone explains are a mistake even where they are few; one in twenty
#: would not be noticed.
DEAD_BY_BIAS = 0.05
#: A bias so many standard deviations of the input below zero keeps a unit off on every example.
FAR_BIAS = 5.0
#: PyTorch draws biases within 1 / sqrt(fan-in): twice that was not drawn by it.
LARGE_BIAS = 2.0
#: With fewer data points a healthy unit may be off on all by chance (2^-8 is one in 256).
FEWEST_ROWS = 8
#: Where inputs look so alike, units are on or off for all of them: that is the collapse's fault.
ALIKE = 0.9

#: Share of flat values from which most of the gradient is lost, and from which nearly all is: a
#: tanh of unit input has 3%, of N(0, 1) weights over a hundred inputs 83%.
MANY_SATURATED = 0.5
MOST_SATURATED = 0.8
#: One-sided functions are flat on half their inputs by design.
ONE_SIDED_SATURATED = 0.95

#: Share of an output's power in its mean from which all weights of a unit move together: 0.85 for
#: a sigmoid of standard normal input, 0.32 for a ReLU.
OFF_CENTRE = 0.7
#: Share of values of one sign from which they are called that.
ONE_SIGN = 0.99


def dead_units(examination: Examination) -> Iterator[Finding]:
    """Units that no example of the batch can move."""
    found: dict[Severity, list[MeasuredLayer]] = {"error": [], "warning": []}
    for layer in examination.layers:
        severity = _deadness(examination, layer)
        if severity is not None:
            found[severity].append(layer)
    for severity, layers in found.items():
        if not layers:
            continue
        first = layers[0]
        activation = first.activation
        assert activation is not None
        for layer in layers:
            if severity == "error" and layer.activation is not None:
                examination.blame_activation(layer, layer.activation.slope)
        cause, remedy = _cause(first)
        yield about(
            layers,
            "dead-units",
            severity,
            f"{activation.dead:.0%} of the units behind {first.name} ({activation.name}) have no "
            f"derivative on any of {activation.rows} data points{others(layers)}: {cause}.",
            remedy=remedy,
            evidence={
                "dead": activation.dead,
                "input_mean": activation.input_mean,
                "input_std": activation.input_std,
                "bias_min": first.weights.bias_min if first.weights else 0.0,
            },
            cure="initialize",
        )


def _deadness(examination: Examination, layer: MeasuredLayer) -> Severity | None:
    activation = layer.activation
    if activation is None or activation.flat_sides == 0 or activation.rows < FEWEST_ROWS:
        return None
    if layer.gates and activation.dead < MOST_DEAD:
        return None
    if layer.name in examination.flat:
        return None  # a norm in between is at fault
    if layer.input is not None and layer.input.quiet == 1.0:
        return None  # nothing that varies comes in: whoever silenced it is at fault
    if activation.dead >= MOST_DEAD:
        return "error"
    if activation.dead >= DEAD_BY_BIAS and _by_bias(layer):
        return "error" if activation.dead >= MANY_DEAD else "warning"
    alike = layer.input is not None and layer.input.cosine > ALIKE
    return "warning" if activation.dead >= MANY_DEAD and not alike else None


def _by_bias(layer: MeasuredLayer) -> bool:
    activation, weights = layer.activation, layer.weights
    if activation is None or weights is None:
        return False
    # What the weights could give, were their input's offset signal: in collapsed networks the
    # spread over the data is nothing, and every bias would seem large.
    scale = layer.input.rms if layer.input is not None else 1.0
    default = LARGE_BIAS / math.sqrt(weights.fan_in)
    spread = max(layer.output.std, weights.gain * scale, default / FAR_BIAS)
    return weights.bias_min < -FAR_BIAS * spread or weights.bias_max > FAR_BIAS * spread


def _cause(layer: MeasuredLayer) -> tuple[str, str]:
    if _by_bias(layer):
        return (
            "their bias outweighs everything that they are given",
            "set the biases to zero and re-initialize the layer (sl.initialize).",
        )
    if layer.input is not None and layer.input.mean_share > OFF_CENTRE:
        return (
            "their input is nearly the same for every example",
            "centre and scale the input, or put a norm before the layer.",
        )
    return (
        "their weights or their input are out of scale",
        "re-initialize the layer (sl.initialize), check the scale of the input, or take a leaky "
        "activation.",
    )


def saturated_units(examination: Examination) -> Iterator[Finding]:
    """Bounded activations that are driven to their flat ends."""
    found: dict[Severity, list[MeasuredLayer]] = {"error": [], "warning": []}
    for layer in examination.layers:
        activation = layer.activation
        if activation is None or layer.gates or activation.dead >= MOST_DEAD:
            continue
        if layer.name in examination.flat:
            continue
        if activation.bounded and activation.saturated >= MANY_SATURATED:
            worst = activation.saturated >= MOST_SATURATED
            found["error" if worst else "warning"].append(layer)
        elif activation.flat_sides and activation.saturated >= ONE_SIDED_SATURATED:
            found["warning"].append(layer)
    for severity, layers in found.items():
        if not layers:
            continue
        first = layers[0]
        activation = first.activation
        assert activation is not None
        for layer in layers:
            if severity == "error" and layer.activation is not None:
                examination.blame_activation(
                    layer, layer.activation.slope / layer.activation.largest
                )
        yield about(
            layers,
            "saturated-units",
            severity,
            f"{activation.saturated:.0%} of the values of {activation.name} behind {first.name} "
            f"lie where it is flat{others(layers)}: the input there has std "
            f"{activation.input_std:.2g}.",
            remedy="bring the input of the activation to a standard deviation of about 1: "
            "re-initialize the layer (Glorot), standardise the data, or put a norm before it.",
            evidence={
                "saturated": activation.saturated,
                "input_std": activation.input_std,
                "input_mean": activation.input_mean,
                "slope": activation.slope,
            },
            cure="initialize",
        )


def not_zero_centred(examination: Examination) -> Iterator[Finding]:
    """Activations of one sign: the gradients of a unit's weights all point the same way."""
    layers = [
        layer
        for layer in examination.layers
        if layer.activation is not None
        and not layer.is_output
        and layer.activation.bounded
        and not layer.gates
        and layer.activation.mean_share > OFF_CENTRE
        and (layer.activation.positive > ONE_SIGN or layer.activation.positive < 1 - ONE_SIGN)
        and layer.activation.dead < MOST_DEAD
    ]
    if not layers:
        return
    first = layers[0].activation
    assert first is not None
    yield about(
        layers,
        "not-zero-centred",
        "warning",
        f"the {first.name} behind {layers[0].name} gives values of one sign{others(layers)}, "
        f"{first.mean_share:.0%} of their power is in the mean: descent must zig-zag.",
        remedy="take a zero-centred activation (tanh, or the sigmoid scaled to pass through the "
        "origin), put a norm behind it, or use larger batches.",
        evidence={"mean_share": first.mean_share, "positive": first.positive},
        cure="swap-activation",
        activation="scaled_sigmoid",
    )
