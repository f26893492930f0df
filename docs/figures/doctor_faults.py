"""Four faults as the doctor sees them: signal and gradient over thirty layers."""

import math
from collections.abc import Callable

import torch
from _digits import BLUE, ORANGE, split
from matplotlib.figure import Figure
from torch import nn

import stablelightning as sl
from stablelightning.report.depth import HEALTHY
from stablelightning.report.style import COLOURS, INK, tidy

_DEPTH, _WIDTH = 30, 64


def _stack(activation: Callable[[], nn.Module]) -> nn.Sequential:
    inner = [m for _ in range(_DEPTH - 2) for m in (nn.Linear(_WIDTH, _WIDTH), activation())]
    return nn.Sequential(nn.Linear(64, _WIDTH), activation(), *inner, nn.Linear(_WIDTH, 8))


def _drawn(std: float) -> nn.Sequential:
    """ReLU layers with weights of ``std / sqrt(fan_in)`` and no bias."""
    net = _stack(nn.ReLU)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std / layer.in_features**0.5)
            nn.init.zeros_(layer.bias)
    return net


def _dead() -> nn.Sequential:
    """Sound weights, and in one layer a bias that switches its units off."""
    net = _drawn(2**0.5)
    nn.init.constant_(net[20].bias, -6.0)
    return net


_CASES = (
    ("PyTorch's own weights, ReLU", lambda: _stack(nn.ReLU)),
    ("weights twice too large, ReLU", lambda: _drawn(2 * 2**0.5)),
    ("one layer's bias at -6, ReLU", _dead),
    ("PyTorch's own weights, sigmoid", lambda: _stack(nn.Sigmoid)),
)


def draw() -> Figure:
    """One panel for each fault, with the code of its worst finding."""
    inputs, target = split("train")
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (title, make) in zip(panels.flat, _CASES, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = sl.diagnose(make(), (inputs[:256], target[:256]))
        place = range(len(found.layers))
        # What is zero has no logarithm: the curve ends there.
        std = [layer.std or math.nan for layer in found.layers]
        gradient = [layer.gradient_rms or math.nan for layer in found.layers]
        axes.axhspan(*HEALTHY, color=COLOURS[2], alpha=0.07, linewidth=0)
        axes.plot(place, std, color=BLUE, marker="o", markersize=2.5, label="std of the output")
        axes.plot(
            place, gradient, color=ORANGE, marker="o", markersize=2.5, label="rms of the gradient"
        )
        axes.set(yscale="log", ylim=(1e-24, 1e12), yticks=[1e-24, 1e-18, 1e-12, 1e-6, 1, 1e6, 1e12])
        axes.minorticks_off()
        tidy(axes)
        axes.set_title(f"{title}: {found.findings[0].code}", fontsize=9, loc="left", color=INK)
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    for axes in panels[1]:
        axes.set_xlabel("layer", fontsize=9)
    return figure
