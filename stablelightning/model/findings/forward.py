"""Findings about the forward signal over depth: it explodes, or no longer tells inputs apart."""

import math
from collections.abc import Iterator

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.activations import FAR_BIAS, LARGE_BIAS
from stablelightning.model.findings.examination import Examination, about, others
from stablelightning.model.findings.weights import UNSCALED
from stablelightning.model.measurement import MeasuredLayer

#: Growth of the standard deviation from the first layer on. A hundredfold leaves the range in which
#: losses and bounded functions work; a thousandfold is 20 layers at 1.41 each, as in residual
#: stacks without any scale, and overflows float16 two such stacks later.
GROWN = 100.0
EXPLODED = 1000.0
#: Where the profile is said to break.
BREAKS = 10.0

#: Two rows may be alike by chance.
FEWEST_EXAMPLES = 4
#: Cosine between different inputs from which 1% of the length of a vector tells them apart ...
COLLAPSED = 0.99
#: Share of the length that tells inputs apart below which float16 does not hold it, and training
#: does not find it again: plain stacks of PyTorch's default come there at twelve layers, where Adam
#: no longer learns what it learns with ten.
LOST = 1e-3


def collapsed_signal(examination: Examination) -> Iterator[Finding]:
    """Different inputs end up at the same output: the first layer at which they do."""
    if examination.measurement.examples < FEWEST_EXAMPLES:
        return
    given = [s.cosine for s in examination.measurement.inputs if math.isfinite(s.cosine)]
    if given and max(given) > COLLAPSED:
        return  # they come in alike; that is said of the input
    layers = [
        layer
        for layer in examination.layers
        if layer.output.cosine > COLLAPSED
        and (layer.unavoidable or _by_bias(layer))
        and not (layer.input is not None and layer.input.quiet == 1.0)
        and not _restored(layer)
        and layer.name not in examination.flat
        and not examination.is_behind_a_fault(layer)
    ]
    if not layers:
        return
    first = layers[0]
    attribution = examination.measurement.attribution
    kept = attribution is not None and bool(attribution.branches)
    lost = any(x.output.std < LOST * x.output.rms for x in layers) and not kept
    weights = first.weights
    by_bias = weights is not None and weights.bias_rms > first.output.std
    cause = "its biases outweigh the signal" if by_bias else "depth drives inputs together"
    yield about(
        layers,
        "collapsed-signal",
        "error" if lost else "warning",
        f"the outputs of {first.name} for different inputs have a mean cosine of "
        f"{first.output.cosine:.4f}{others(layers)}: {cause}.",
        remedy="re-initialize with zero biases and the gain of the activation (sl.initialize); in "
        "deep plain stacks add skips or norms, or centre what the activations give.",
        evidence={
            "cosine": first.output.cosine,
            "largest_cosine": max(layer.output.cosine for layer in layers),
            "std": first.output.std,
            "rms": first.output.rms,
            "smallest_share": min(x.output.std / max(x.output.rms, 1e-30) for x in layers),
        },
        cure="initialize",
    )


def _by_bias(layer: MeasuredLayer) -> bool:
    """Whether its own biases, larger than any rule draws them, make its outputs alike."""
    weights = layer.weights
    if layer.gates or layer.consumer in UNSCALED:
        return False  # a gate that starts open has a bias of one
    return weights is not None and weights.bias_rms > max(
        LARGE_BIAS / math.sqrt(weights.fan_in), FAR_BIAS * layer.output.std
    )


def _restored(layer: MeasuredLayer) -> bool:
    """Whether a batch norm follows at once: it takes away what all inputs have in common."""
    return (
        layer.normalised
        and layer.kind in ("conv", "transposed_conv", "linear")
        and bool(layer.role is not None and "norm" in layer.role.consumer.route[:1])
    )


def exploding_signal(examination: Examination) -> Iterator[Finding]:
    """The signal grows from layer to layer, by more than faulty layers of their own explain."""
    hidden = [
        x for x in examination.layers if x.kind != "embedding" and not x.gates and x.output.std > 0
    ]
    if len(hidden) < 2:
        return
    base = hidden[0].output.std / examination.faulty.get(hidden[0].name, 1.0)
    explained = 1.0
    grown: list[tuple[MeasuredLayer, float]] = []
    for layer in hidden:
        explained *= max(examination.faulty.get(layer.name, 1.0), 1.0)
        grown.append((layer, layer.output.std / max(base, 1e-30) / explained))
    largest = max(factor for _, factor in grown)
    if largest < GROWN:
        return
    layers = [layer for layer, factor in grown if factor > BREAKS]
    slope = examination.measurement.forward_slope()
    yield about(
        layers,
        "exploding-signal",
        "error" if largest > EXPLODED else "warning",
        f"the standard deviation over the data grows {largest:.3g} times from the first layer on, "
        f"past tenfold at {layers[0].name}{others(layers)}.",
        remedy="initialize with the gain of the activation (sl.initialize); scale residual "
        "branches, or put norms into them.",
        evidence={"growth": largest, "slope": slope, "std": layers[-1].output.std},
        cure="initialize",
    )
