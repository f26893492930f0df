"""Findings about how a network is built: depth without a way around, broken normalization."""

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from stablelightning.functional.isometry import in_mirrored_halves, is_isometry
from stablelightning.model.diagnosis import Finding
from stablelightning.model.findings.examination import Examination, about
from stablelightning.model.measurement import MeasuredLayer

#: Layers in a row, without skip or norm, from which plain networks train worse than shallower ones
#: (arXiv:1512.03385, figure 1, at 20 against 56 layers).
PLAIN_DEPTH = 20
#: A profile that falls or grows less than this per layer keeps its scale over twenty layers within
#: a factor of e: depth alone is then no fault yet.
LEVEL_SLOPE = 0.05
#: A first step that promises more than this share of the loss is long for a plain stack, however
#: level: behind it isometric stacks of 30 to 50 layers ended below networks of two layers, and the
#: same stacks with skips above them (docs/stability.md).
LONG_STEP = 0.5
#: Self-normalizing stacks are made to be plain: they are changed only where the rate is at fault.
LONGEST_STEP = 1.0
#: Between a signal of size 1, less what the mean takes, and the next smaller one, 1/2.
SMALL_SIGNAL = 0.5

#: The sigmoid's derivative is at most 1/4. In unit-scale networks each layer of it costs a factor
#: of four; five cost a thousand, eight more than float16 can hold of a gradient.
LOSSY_SLOPE = 0.5
SATURATING_LAYERS = 4
HOPELESS_LAYERS = 8

#: Square roots of the bounds on the sum of squared weights in the theorem of self-normalizing
#: networks, [0.95, 1.1], widened for layers whose fan-in and fan-out differ under other rules.
LECUN_GAIN = (0.85, 1.15)
#: Inputs with another standard deviation than this range take the first layers away from the fixed
#: point.
STANDARD_RANGE = (0.5, 2.0)


def plain_depth(examination: Examination) -> Iterator[Finding]:
    """Many weight layers in a row without a norm or a way around."""
    attribution = examination.measurement.attribution
    if attribution is None or attribution.plain_depth <= PLAIN_DEPTH:
        return
    layers = [x for x in examination.layers if x.branch is None and not x.normalised]
    bent = [x.consumer for x in layers if not x.is_output]
    promised = examination.promised
    bearable = LONGEST_STEP if bent and all(name == "selu" for name in bent) else LONG_STEP
    long_steps = promised is not None and promised > bearable
    if bearable == LONGEST_STEP and not long_steps:
        return  # made for this; whether it is used so is asked below
    level = _is_level(examination)
    curable = not level or long_steps or promised is None
    start = [x for x in layers if not x.is_input][:1] or layers[:1]
    evidence = {"plain_depth": float(attribution.plain_depth)}
    words = "."
    if level and not long_steps:
        words = ": the signal is level at the start, and the rate must be small."
    elif level and promised is not None:
        evidence["promised"] = promised
        words = (
            f": the signal is level at the start, but one step promises {promised:.0%} of the "
            "loss, since the changes of all layers add up."
        )
    yield Finding(
        "plain-depth",
        "info" if level and not long_steps else "warning",
        start[0].name if start else "",
        f"{attribution.plain_depth} weight layers follow each other without skip or norm{words}",
        evidence,
        "add skips or norms, use fewer layers, or initialize the whole stack to an isometry "
        "(sl.initialize) and train it at a small rate.",
        "add-skips" if curable else None,
        {"initialize": True} if curable and _works_small(layers) else {},
        tuple(x.name for x in layers),
    )


def _works_small(layers: list[MeasuredLayer]) -> bool:
    """Whether a stack was just made an isometry for a small signal: with skips it bears a larger.

    Its functions bend only what is large, and a bend is what a layer is for (measured: tanh 97
    without and 98 percent with a signal of size 1).
    """
    inner = [x for x in layers if not (x.is_input or x.is_output)]
    weights = [getattr(x.module, "weight", None) for x in inner]
    return (
        bool(inner)
        and median(x.output.std for x in inner) < SMALL_SIGNAL
        and all(isinstance(w, Tensor) and is_isometry(w) for w in weights)
    )


def _is_level(examination: Examination) -> bool:
    measurement = examination.measurement
    slopes = (measurement.forward_slope(), measurement.gradient_slope())
    cosines = [x.output.cosine for x in examination.layers if math.isfinite(x.output.cosine)]
    return all(abs(s) < LEVEL_SLOPE for s in slopes) and max(cosines, default=0.0) < 0.99


def saturating_depth(examination: Examination) -> Iterator[Finding]:
    """A stack of functions that are flat on both sides and nowhere steep: sigmoids."""
    layers = [
        layer
        for layer in examination.measurement.trunk
        if layer.activation is not None
        and layer.activation.bounded
        and not layer.gates
        and layer.activation.largest < LOSSY_SLOPE
        and not layer.is_output
    ]
    if len(layers) < SATURATING_LAYERS:
        return
    first = layers[0].activation
    assert first is not None
    bound = first.largest ** len(layers)
    yield about(
        layers,
        "saturating-depth",
        "error" if len(layers) >= HOPELESS_LAYERS else "warning",
        f"{len(layers)} layers of {first.name}, whose derivative is at most {first.largest:.2g}, "
        f"follow each other: at unit weights {bound:.1g} of the gradient is left, and only "
        f"weights above {1 / first.largest:.3g} in a narrow range of inputs would raise it.",
        remedy="take the scaled sigmoid, tanh or a ReLU-like activation in hidden layers.",
        evidence={"activations": float(len(layers)), "largest": first.largest, "bound": bound},
        cure="swap-activation",
        activation="scaled_sigmoid",
        # Weights that were right for a quarter of the slope are wrong for all of it; and what is
        # odd and has slope one keeps its signal by orthogonal weights (97.7 against 97.3 percent
        # with Glorot's, six layers on digits, 16 seeds).
        initialize="mirrored",
    )


def self_normalization_broken(examination: Examination) -> Iterator[Finding]:
    """SELU keeps mean 0 and variance 1 only in plain stacks, from LeCun weights and unit inputs."""
    layers = [x for x in examination.layers if x.consumer == "selu"]
    if not layers:
        return
    reasons, evidence = _reasons(examination, layers)
    if not reasons:
        return
    cure: str | None = None
    if evidence.get("dropout"):
        cure = "alpha-dropout"
    elif "gain" in evidence and not evidence.get("norms") and not evidence.get("skips"):
        cure = "initialize"  # the inputs are not the weights' to mend
    finding = about(
        layers,
        "self-normalization-broken",
        "warning",
        f"SELU normalises by itself where nothing interferes, and here {'; '.join(reasons)}.",
        remedy="draw LeCun normal weights with zero biases, standardise the input, take "
        "AlphaDropout for Dropout, and leave out batch norm and skips; or take another activation.",
        evidence=evidence,
        cure=cure,
    )
    # The dropout before the head stands beside no layer that a SELU follows.
    yield replace(finding, modules=(*finding.modules, *_plain_dropouts(examination)))


def _reasons(
    examination: Examination, layers: list[MeasuredLayer]
) -> tuple[list[str], dict[str, float]]:
    reasons: list[str] = []
    evidence: dict[str, float] = {}
    dropouts = _plain_dropouts(examination)
    if dropouts:
        reasons.append("plain dropout shifts mean and variance")
        evidence["dropout"] = float(len(dropouts))
    if any(x.normalised for x in layers) or _has_batch_norm(examination):
        reasons.append("a norm already does it")
        evidence["norms"] = 1.0
    if any(_is_added_up(x) for x in layers):
        reasons.append("skips add up variances")
        evidence["skips"] = 1.0
    for signal in examination.measurement.inputs:
        low, high = STANDARD_RANGE
        if not (low < signal.rms < high) or signal.mean_share > 0.5:
            reasons.append(f"the input has mean {signal.mean:.2g} and std {signal.std:.2g}")
            evidence["input_std"] = signal.std
            break
    gains = [x.weights.gain for x in layers if x.weights is not None and not _is_mirrored(x)]
    gain = median(gains) if gains else 1.0
    if not LECUN_GAIN[0] < gain < LECUN_GAIN[1]:
        reasons.append(f"the weights have gain {gain:.2f} and not LeCun's 1")
        evidence["gain"] = gain
    return reasons, evidence


def _plain_dropouts(examination: Examination) -> list[str]:
    return [
        name
        for name, m in examination.model.named_modules()
        if isinstance(m, _DropoutNd) and not isinstance(m, nn.AlphaDropout) and _drops(m)
    ]


def _is_added_up(layer: MeasuredLayer) -> bool:
    """Whether a skip adds to its signal, and nothing holds the branch small."""
    if layer.branch is not None:
        return layer.branch.scale is None
    return layer.role is not None and "add" in layer.role.consumer.route


def _is_mirrored(layer: MeasuredLayer) -> bool:
    """Whether its weights keep an isometry by pairs of units, and no moments."""
    weight = getattr(layer.module, "weight", None)
    return isinstance(weight, Tensor) and in_mirrored_halves(weight)


def _drops(module: nn.Module) -> bool:
    return getattr(module, "p", 0.0) > 0 and type(module).__name__ != "FeatureAlphaDropout"


def _has_batch_norm(examination: Examination) -> bool:
    return any(isinstance(m, _BatchNorm) for m in examination.model.modules())


def mixed_activations(examination: Examination) -> Iterator[Finding]:
    """More than one kind of activation behind hidden layers: often meant, sometimes left over."""
    names: dict[str, list[MeasuredLayer]] = {}
    for layer in examination.layers:
        if layer.activation is not None and not (layer.is_output or layer.gates):
            names.setdefault(layer.consumer, []).append(layer)
    if len(names) < 2:
        return
    rare = min(names.values(), key=len)
    counts = ", ".join(f"{name} ({len(found)})" for name, found in names.items())
    yield about(
        rare,
        "mixed-activations",
        "info",
        f"hidden layers run into different activations: {counts}.",
        remedy="nothing, if it is meant.",
        evidence={name: float(len(found)) for name, found in names.items()},
    )
