"""Findings about gradients on their way back: they vanish, explode, or are lost to the dtype."""

import math
from collections.abc import Iterator
from statistics import median

from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination, about, others
from stablelightning.model.measurement import MeasuredLayer

#: Gradient of a layer beside that of the last one. Plain stacks of PyTorch's default lose a factor
#: of 2.4 in each layer: at eight layers, a thousandth, SGD reads half of the digits (measured), and
#: at ten none; Adam, whose steps do not know the scale, fails from twelve, a hundred-thousandth.
FADED = 1e-3
VANISHED = 1e-5
#: The other way round. Deep networks of convolutions and batch norms start with some hundredfold
#: (1.2 to the power of the depth, arXiv:1902.08129) and train.
GROWN = 1e3
EXPLODED = 1e5
#: Norms of a layer's weight gradient outside of these are beyond any usual learning rate.
SMALLEST_GRADIENT = 1e-6
LARGEST_GRADIENT = 1e3
#: Share of gradient values lost to float16 from which layers begin to stand still.
MANY_LOST = 0.05


def vanishing_gradient(examination: Examination) -> Iterator[Finding]:
    """The gradient that reaches the first layers is a fraction of that at the last."""
    trunk = _with_gradient(examination)
    if len(trunk) < 2 or _flows_nowhere(examination):
        return
    profile = _profile(examination, trunk)
    smallest = min(factor for _, factor in profile)
    absolute = [x for x in trunk if 0 <= x.weight_gradient < SMALLEST_GRADIENT]
    if smallest > FADED and not (absolute and not examination.blamed):
        return
    if smallest > FADED and 2 * len(absolute) > len(trunk):
        yield _scaled_loss("vanishing-gradient", trunk, "below", SMALLEST_GRADIENT)
        return
    layers = [x for x, factor in profile if factor < FADED] or absolute
    nearest = layers[-1]
    attribution = examination.measurement.attribution
    # Branches that start near zero give little gradient to what only they read, by design.
    branches = attribution is not None and bool(attribution.branches)
    severe = (smallest < VANISHED or bool(absolute)) and not branches
    slope = examination.measurement.gradient_slope()
    yield about(
        [nearest, *(x for x in layers if x is not nearest)],
        "vanishing-gradient",
        "error" if severe else "warning",
        f"the gradient falls to {smallest:.2g} of what it is at the end; behind a thousandth from "
        f"{nearest.name} back to {layers[0].name}{others(layers)}.",
        remedy="initialize with the gain of the activation (sl.initialize); take an activation "
        "that does not saturate; in deep stacks add skips or norms.",
        evidence={
            "ratio": smallest,
            "slope": slope,
            "weight_gradient": min(x.weight_gradient for x in layers),
        },
        cure="initialize",
    )


def exploding_gradient(examination: Examination) -> Iterator[Finding]:
    """The gradient that reaches the first layers is many times that at the last."""
    trunk = _with_gradient(examination)
    if len(trunk) < 2:
        return
    profile = _profile(examination, trunk)
    largest = max(factor for _, factor in profile)
    absolute = [x for x in trunk if x.weight_gradient > LARGEST_GRADIENT and not x.normalised]
    blamed = examination.blamed or any(s.rms > 5 for s in examination.measurement.inputs)
    if largest < GROWN and not (absolute and not blamed):
        return
    if largest < GROWN and 2 * len(absolute) > len(trunk):
        yield _scaled_loss("exploding-gradient", trunk, "above", LARGEST_GRADIENT)
        return
    layers = [x for x, factor in profile if factor > GROWN] or absolute
    nearest = layers[-1]
    severe = largest > EXPLODED or bool(absolute)
    yield about(
        [nearest, *(x for x in layers if x is not nearest)],
        "exploding-gradient",
        "error" if severe else "warning",
        f"the gradient grows {largest:.3g} times on its way from the end to the start"
        f"{others(layers)}.",
        remedy="initialize with the gain of the activation (sl.initialize); scale residual "
        "branches; clipping bounds the step and not the cause.",
        evidence={
            "ratio": largest,
            "slope": examination.measurement.gradient_slope(),
            "weight_gradient": max(x.weight_gradient for x in layers),
        },
        cure="initialize",
    )


def _scaled_loss(code: str, trunk: list[MeasuredLayer], side: str, bound: float) -> Finding:
    """Gradients that are off from the last layer on, by one factor: no weight is to blame."""
    typical = median(x.weight_gradient for x in trunk)
    return Finding(
        code,
        "error",
        "",
        f"the gradient is {side} {bound:g} from the last layer to the first (typically "
        f"{typical:.2g}), and hardly changes on its way: the loss itself is scaled so.",
        {"weight_gradient": typical, "layers": float(len(trunk))},
        "take the mean and not the sum over rows and outputs, standardise the targets of a "
        "regression, and leave out factors on the loss that the learning rate can carry.",
        modules=tuple(x.name for x in trunk),
    )


def gradient_underflow(examination: Examination) -> Iterator[Finding]:
    """Gradients that the dtype in use cannot hold."""
    share = examination.measurement.underflow
    if share > MANY_LOST:
        yield Finding(
            "gradient-underflow",
            "warning",
            "",
            f"{share:.0%} of the gradient values that are not zero would be in the dtype in use.",
            {"share": share},
            "scale the loss (a GradScaler, precision='16-mixed'), or use bfloat16.",
        )


def _profile(
    examination: Examination, trunk: list[MeasuredLayer]
) -> list[tuple[MeasuredLayer, float]]:
    """Gradient norms over that of the last layer, less what faulty layers in between explain."""
    end = trunk[-1].gradient
    factors = []
    explained = 1.0
    for layer in reversed(trunk):
        explained *= examination.flat.get(layer.name, 1.0)  # before its output, seen from the end
        factors.append((layer, _ratio(layer.gradient, end, explained)))
        explained *= examination.faulty.get(layer.name, 1.0)
    return factors[::-1]


def _ratio(value: float, end: float, explained: float) -> float:
    if explained == 0 or end == 0:
        return 1.0  # a silent layer lies between: nothing can be said
    return value / end / explained


def _with_gradient(examination: Examination) -> list[MeasuredLayer]:
    """Layers of the trunk that get a signal and a gradient; what is silenced cannot vanish."""
    return [
        x
        for x in examination.measurement.trunk
        if math.isfinite(x.gradient_norm)
        and x.kind != "embedding"
        and x.output.finite
        and not (x.input is not None and x.input.quiet == 1.0)
    ]


def _flows_nowhere(examination: Examination) -> bool:
    """Whether no gradient came at all: a loss that is constant, or already zero."""
    return all(
        x.gradient_norm == 0 for x in examination.layers if x.gradient_norm == x.gradient_norm
    )
