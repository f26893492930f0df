"""What needs no training: gains in closed form, signals over 200 layers, the sigmoid's window."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stablelightning as sl
from stablelightning.functional.gains import backward_gain, forward_gain
from stablelightning.functional.isometry import mirrored
from stablelightning.functional.signals import sigmoid_explosion_window
from tests.benchmarks.stability import networks
from tests.benchmarks.stability.training import digits

Function = Callable[[Tensor], Tensor]

#: Slope and saturation of SELU, arXiv:1706.02515.
_SCALE, _ALPHA = 1.0507009873554805, 1.6732632423543772


def _below(x: float) -> float:
    """The normal distribution function."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def closed_form_gains() -> list[dict[str, Any]]:
    """Gains against closed forms: name, measured and exact, forward and backward."""
    # E[(e^z - 1)^2; z < 0] and E[e^(2z); z < 0], by completing the square.
    tail = math.e**2 * _below(-2) - 2 * math.exp(0.5) * _below(-1) + 0.5
    slope = math.e**2 * _below(-2)
    inside = math.erf(1 / math.sqrt(2))
    rows: list[tuple[str, Function, float, float]] = [
        ("identity", lambda x: x, 1.0, 1.0),
        ("ReLU", torch.relu, 0.5, 0.5),
        *(
            (f"leaky ReLU({a:g})", _leaky(a), (1 + a * a) / 2, (1 + a * a) / 2)
            for a in (0.01, 0.2, 0.5)
        ),
        ("ELU", F.elu, 0.5 + tail, 0.5 + slope),
        ("SELU", F.selu, _SCALE**2 * (0.5 + _ALPHA**2 * tail),
         _SCALE**2 * (0.5 + _ALPHA**2 * slope)),
        ("hardtanh", F.hardtanh, inside - 2 * _density(1) + 2 * _below(-1), inside),
        ("ReLU6", F.relu6, _clipped_square(6.0), _below(6) - 0.5),
        ("exp", torch.exp, math.e**2, math.e**2),
        ("sin", torch.sin, (1 - math.exp(-2)) / 2, (1 + math.exp(-2)) / 2),
    ]  # fmt: skip
    return [
        {
            "function": name,
            "forward": forward_gain(function),
            "forward exact": 1 / math.sqrt(square),
            "backward": backward_gain(function),
            "backward exact": 1 / math.sqrt(slope_square),
        }
        for name, function, square, slope_square in rows
    ]


def _leaky(slope: float) -> Function:
    return lambda x: F.leaky_relu(x, slope)


def _clipped_square(top: float) -> float:
    """``E[min(max(z, 0), top)^2]``."""
    return _below(top) - 0.5 - top * _density(top) + top**2 * _below(-top)


def worst_gain_error(rows: list[dict[str, Any]]) -> float:
    return max(abs(r[way] - r[f"{way} exact"]) for r in rows for way in ("forward", "backward"))


# ---- the signal over depth ----------------------------------------------------------------------

PROFILE_DEPTH = 200
_PROFILE_WIDTH = 256
_PROFILE_ROWS = 64


@torch.no_grad()
def depth_profile(
    activation: str, *, initialized: bool, depth: int = PROFILE_DEPTH, width: int = _PROFILE_WIDTH
) -> dict[str, Any]:
    """Pre-activations over depth: variance over the data per unit, mean cosine between inputs.

    Theory starts from the cosines that were measured in the first layer, and hands them from layer
    to layer by Gaussian integrals, as for a network of infinite width.

    Args:
        activation: of all layers.
        initialized: by ``sl.initialize``; drawn by hand otherwise.
        depth: hidden layers.
        width: of each.
    """
    torch.manual_seed(0)
    model = networks.plain(depth, width, activation)
    inputs = F.normalize(digits(False).train[0][:_PROFILE_ROWS]) * math.sqrt(networks.PIXELS)
    if initialized:
        sl.initialize(model, inputs)
    else:
        networks.draw_by_hand(model, activation)
    outputs: list[Tensor] = []
    layers = networks.weight_layers(model)[:-1]
    handles = [m.register_forward_hook(lambda *seen: outputs.append(seen[2])) for m in layers]
    model(inputs)
    for handle in handles:
        handle.remove()
    first = outputs[0].double()
    pairs = torch.triu_indices(len(inputs), len(inputs), offset=1)
    mean_square = first.square().mean().item()
    cosines = _cosines(first)[pairs[0], pairs[1]]
    # Forty quantiles stand for the cosines of all pairs.
    places = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    theory = _theory(
        layers[1].weight, activation, mean_square, cosines.quantile(places), len(outputs)
    )
    return {
        "activation": activation,
        "initialized": "by sl.initialize" if initialized else "by hand",
        "layer": list(range(1, len(outputs) + 1)),
        "variance": [o.double().var(0, correction=0).mean().item() for o in outputs],
        "cosine": [_cosines(o.double())[pairs[0], pairs[1]].mean().item() for o in outputs],
        "variance in theory": [
            q * (1 - 1 / len(inputs)) * (1 - c.mean().item()) for q, c in theory
        ],
        "cosine in theory": [c.mean().item() for _, c in theory],
    }


def _cosines(rows: Tensor) -> Tensor:
    unit = F.normalize(rows)
    return unit @ unit.T


def _theory(
    weight: Tensor, activation: str, mean_square: float, cosines: Tensor, depth: int
) -> list[tuple[float, Tensor]]:
    """Mean square and cosines of the pre-activations of each layer."""
    function = networks.activation_named(activation)
    half = weight.shape[0] // 2
    halves = torch.equal(weight[:half], -weight[half:])
    passed: Function = mirrored(function) if halves else function
    # A mirrored unit reads f(z) and f(-z) with opposite weights: half as many, of the difference.
    factor = weight.double().square().sum(1).mean().item() / (2 if halves else 1)
    found = [(mean_square, cosines)]
    for _ in range(depth - 1):
        square, cosines = _one_layer(passed, mean_square, cosines)
        mean_square = factor * square
        found.append((mean_square, cosines))
    return found


#: A grid for both of two normal numbers; its error at a kink falls with the square of the step.
_GRID = torch.linspace(-6, 6, 121, dtype=torch.float64)
_WEIGHTS = torch.exp(-_GRID.square() / 2) * (_GRID[1] - _GRID[0]) / math.sqrt(2 * math.pi)


def _one_layer(function: Function, mean_square: float, cosines: Tensor) -> tuple[float, Tensor]:
    """``E[f(u)^2]``, and the cosine of ``f(u)`` and ``f(v)`` for each cosine of ``u`` and ``v``."""
    size = math.sqrt(mean_square)
    first = function(size * _GRID)
    square = (_WEIGHTS * first.square()).sum()
    along = cosines[:, None, None]
    second = along * _GRID[:, None] + (1 - along.square()).clamp_min(0).sqrt() * _GRID[None, :]
    inner = (function(size * second) * _WEIGHTS).sum(2)
    return float(square), ((inner * first * _WEIGHTS).sum(1) / square).clamp(-1, 1)


# ---- the sigmoid's window -----------------------------------------------------------------------


def sigmoid_window() -> dict[str, float]:
    """Where ``|w sigma'(w x)| >= 1``: the least weight, and the widest range of inputs.

    Measured on a grid of weights and inputs; and as the package's closed form has it.
    """
    weights = torch.arange(1.0, 20.0, 0.01, dtype=torch.float64)
    inputs = torch.arange(-1.0, 1.0, 1e-4, dtype=torch.float64)
    widths = []
    for weight in weights.tolist():
        value = torch.sigmoid(weight * inputs)
        widths.append((weight * value * (1 - value) >= 1).sum().item() * 1e-4)
    best = max(range(len(widths)), key=widths.__getitem__)
    closed = [sigmoid_explosion_window(weight) for weight in weights.tolist()]
    return {
        "least weight": next(w for w, width in zip(weights.tolist(), widths, strict=True) if width),
        "widest range": widths[best],
        "at weight": weights[best].item(),
        "widest range in closed form": max(closed),
        "largest difference": max(abs(a - b) for a, b in zip(widths, closed, strict=True)),
    }
