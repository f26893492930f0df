"""Findings that the weights alone show: symmetry, and a scale that no rule would give them."""

import math
from collections.abc import Iterator
from statistics import median

from stablelightning.model.diagnosis import Finding, Severity
from stablelightning.model.findings.examination import Examination, about, others
from stablelightning.model.measurement import MeasuredLayer

#: Gains (rms weight times sqrt(fan-in)) that no rule gives to a layer of ordinary shape: Glorot,
#: He, LeCun and orthogonal, by fan-in or fan-out, lie between 0.1 and 5. Ten times the signal in
#: one layer is a hundred times its power, and a tenth a hundredth.
LARGE_GAIN = 10.0
SMALL_GAIN = 0.1
#: Where a norm follows, the scale is restored and only the step size suffers; depthwise kernels
#: drawn by fan-out come down to sqrt(2 / channels), 0.023 for 3840 channels.
SMALL_GAIN_BEFORE_NORM = 0.02
#: A layer that is this many times off its fellows, and off the middle of what rules give, was set
#: by hand or by mistake.
FAR_FROM_OTHERS = 8.0
ODD_LARGE_GAIN = 4.0
ODD_SMALL_GAIN = 0.2
#: Logits with a larger standard deviation than this are one class for sure on most rows, and mostly
#: the wrong one: the loss starts at several times that of a guess.
LARGE_OUTPUT = 5.0
#: Consumers for which a small scale is a choice (flat attention, open gates); embeddings are drawn
#: with 0.02 in language models.
UNSCALED = ("softmax", "attention", "gate")
#: Weights that spread less than this around their mean, relative to it, are one constant.
CONSTANT_SPREAD = 1e-3
#: From half the units on, copies are how the layer was made, and not two that were tied on purpose.
MOST_UNITS = 0.5


def symmetric_weights(examination: Examination) -> Iterator[Finding]:
    """Units that are copies of each other get the same gradient for ever; zero ones stop it."""
    alike: list[MeasuredLayer] = []
    few: list[MeasuredLayer] = []
    for layer in examination.layers:
        weights = layer.weights
        if weights is None or weights.frozen or layer.kind == "embedding" or weights.units < 2:
            continue
        if layer.gates:  # a gate that starts the same for every channel is a choice
            continue
        if weights.zero and _may_start_at_zero(layer):
            continue
        if weights.zero or weights.spread < CONSTANT_SPREAD or weights.duplicates >= MOST_UNITS:
            alike.append(layer)
            examination.blame_weights(layer, 0.0 if weights.zero else 1.0)
        elif weights.duplicates > 0 and weights.fan_in > 1:
            few.append(layer)
    if alike:
        first = alike[0].weights
        assert first is not None
        what = "are all zero" if first.zero else "are the same for its units"
        yield about(
            alike,
            "symmetric-weights",
            "error",
            f"the weights of {alike[0].name} {what}{others(alike)}: its units get the same "
            "gradient and stay copies of each other.",
            remedy="draw the weights at random (sl.initialize); only biases, and the last layer "
            "of a residual branch, start at zero.",
            evidence={"duplicates": first.duplicates, "spread": first.spread, "gain": first.gain},
            cure="initialize",
        )
    if few:
        first = few[0].weights
        assert first is not None
        yield about(
            few,
            "symmetric-weights",
            "warning",
            f"{first.duplicates:.0%} of the units of {few[0].name} are exact copies of another "
            f"one{others(few)}: they will stay so.",
            remedy="draw the weights of every unit at random (sl.initialize).",
            evidence={"duplicates": first.duplicates},
            cure="initialize",
        )


def weight_scale(examination: Examination) -> Iterator[Finding]:
    """One layer whose weights are far too large or too small for its number of inputs."""
    usual = _usual_gains(examination)
    large: list[MeasuredLayer] = []
    small: list[MeasuredLayer] = []
    for layer in examination.layers:
        weights = layer.weights
        if weights is None or weights.zero or not weights.finite or weights.frozen:
            continue
        ratio = weights.gain / usual.get(layer.kind, weights.gain)
        if _is_large(layer, ratio):
            examination.blame_weights(layer, weights.gain)
            if not _is_bounded(layer):
                large.append(layer)
        elif _is_small(layer, ratio):
            small.append(layer)
            examination.blame_weights(layer, weights.gain)
    yield from _large(large)
    yield from _small(small)


def _large(layers: list[MeasuredLayer]) -> Iterator[Finding]:
    for normalised in (False, True):
        group = [x for x in layers if x.normalised is normalised]
        if not group:
            continue
        first = _strongest(group)
        assert first.weights is not None
        effect = (
            "the norm behind it hides that, and its weights will hardly move"
            if normalised
            else "the signal explodes there"
        )
        yield about(
            [first, *(x for x in group if x is not first)],
            "exploding-signal",
            "warning" if normalised else "error",
            f"the weights of {first.name} amplify their input {first.weights.gain:.3g} times"
            f"{others(group)}: {effect}.",
            remedy="re-initialize the layer for its fan-in and its activation (sl.initialize).",
            evidence={
                "gain": first.weights.gain,
                "fan_in": float(first.weights.fan_in),
                "std": first.output.std,
            },
            cure="initialize",
        )


def _small(layers: list[MeasuredLayer]) -> Iterator[Finding]:
    for harmless in (False, True):
        group = [x for x in layers if _is_harmless(x) is harmless]
        if not group:
            continue
        first = min(group, key=lambda x: x.weights.gain if x.weights else math.inf)
        assert first.weights is not None
        yield about(
            [first, *(x for x in group if x is not first)],
            "vanishing-gradient",
            _severity(group) if harmless else "error",
            f"the weights of {first.name} let {first.weights.gain:.2g} of their input pass"
            f"{others(group)}: signal and gradient vanish there.",
            remedy="re-initialize the layer for its fan-in and its activation (sl.initialize).",
            evidence={
                "gain": first.weights.gain,
                "fan_in": float(first.weights.fan_in),
                "std": first.output.std,
                "gradient_norm": first.gradient_norm,
            },
            cure="initialize",
        )


def _usual_gains(examination: Examination) -> dict[str, float]:
    """The median gain of the layers of each kind, where there are enough to have one."""
    gains: dict[str, list[float]] = {}
    for layer in examination.layers:
        if layer.weights is not None and not layer.weights.zero and layer.weights.finite:
            gains.setdefault(layer.kind, []).append(layer.weights.gain)
    plain = [g for kind in ("linear", "conv", "transposed_conv") for g in gains.get(kind, [])]
    if len(plain) > 2:  # a head beside two convolutions: all of them multiply and add
        gains = {kind: plain if len(found) < 3 else found for kind, found in gains.items()}
    return {kind: median(found) for kind, found in gains.items() if len(found) > 2}


def _is_large(layer: MeasuredLayer, ratio: float) -> bool:
    weights = layer.weights
    assert weights is not None
    if layer.is_output:  # what counts is the size of what the loss is given
        return weights.gain > ODD_LARGE_GAIN and layer.output.std > LARGE_OUTPUT
    # A layer with a way around it, or a gate, may differ from its fellows by design.
    odd = layer.unavoidable and not layer.normalised and ratio > FAR_FROM_OTHERS
    return weights.gain > LARGE_GAIN or (weights.gain > ODD_LARGE_GAIN and odd)


def _is_small(layer: MeasuredLayer, ratio: float) -> bool:
    weights = layer.weights
    assert weights is not None
    if layer.kind == "embedding" or layer.gates or layer.consumer in UNSCALED:
        return False
    if _ends_branch(layer) or layer.is_output:  # such starts are rules of their own
        return weights.gain < SMALL_GAIN_BEFORE_NORM
    if layer.normalised or not layer.unavoidable:
        return weights.gain < SMALL_GAIN_BEFORE_NORM
    return weights.gain < SMALL_GAIN or (
        weights.gain < ODD_SMALL_GAIN and ratio < 1 / FAR_FROM_OTHERS
    )


def _is_harmless(layer: MeasuredLayer) -> bool:
    """Whether what vanishes here is had elsewhere: behind a norm, around a branch, at a head."""
    return layer.normalised or layer.is_output or not layer.unavoidable


def _severity(layers: list[MeasuredLayer]) -> Severity:
    """Heads that start small are common, and only slow down the first steps."""
    return "info" if all(layer.is_output for layer in layers) else "warning"


def _is_bounded(layer: MeasuredLayer) -> bool:
    """Whether a function that is flat on both sides takes the signal: it saturates instead."""
    activation = layer.activation
    return activation is not None and activation.bounded and activation.saturated > 0.5


def _ends_branch(layer: MeasuredLayer) -> bool:
    # An attention module is one layer here, and its output projection the last weight of it.
    return layer.branch is not None and layer.branch.last_layer in (
        layer.name,
        f"{layer.name}.out_proj",
    )


def _may_start_at_zero(layer: MeasuredLayer) -> bool:
    """Classifier heads and the ends of residual branches may: what is around them breaks ties."""
    if layer.kind == "attention":  # only its output projection; the statistics tell the first one
        return layer.weights is not None and layer.weights.duplicates == 0 and _ends_branch(layer)
    return layer.is_output or _ends_branch(layer)


def _strongest(layers: list[MeasuredLayer]) -> MeasuredLayer:
    """The first of those whose gain is within a factor of the largest: where the fault begins."""
    top = max(x.weights.gain for x in layers if x.weights is not None)
    return next(x for x in layers if x.weights is not None and x.weights.gain > top / 2)
