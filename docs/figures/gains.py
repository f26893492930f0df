"""What each function does to a signal: the gain at every size, and what becomes of the size."""

import math

import torch
import torch.nn.functional as F
from _digits import BLUE, GREY, ORANGE
from matplotlib.figure import Figure

from stablelightning.functional.depth import variance_map
from stablelightning.functional.gains import forward_gain
from stablelightning.report.style import COLOURS

_DEPTH = 40
_GREEN, _PINK = COLOURS[2:4]
_FUNCTIONS = (
    ("ReLU", F.relu, GREY),
    ("SELU", F.selu, BLUE),
    ("GELU", F.gelu, ORANGE),
    ("ELU", F.elu, _GREEN),
    ("tanh", torch.tanh, _PINK),
)


def draw() -> Figure:
    """Two panels: gain over size, and size over depth from a start that is 20 % off."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = torch.logspace(-1.3, 1.3, 40).tolist()
    for name, function, colour in _FUNCTIONS:
        gains = [size / math.sqrt(variance_map(function, size**2)) for size in sizes]
        left.loglog(sizes, gains, color=colour, label=name, linewidth=2)
        gain = forward_gain(function)
        left.plot(1, gain, "o", color=colour, markersize=5)
        variance = [1.44]
        for _ in range(_DEPTH):
            variance.append(gain**2 * variance_map(function, variance[-1]))
        right.semilogy([math.sqrt(v) for v in variance], color=colour, label=name, linewidth=2)
    left.set(xlabel="size of the signal (rms)", title="factor that keeps the size")
    right.set(xlabel="layer", title="size over depth, begun at 1.2")
    right.legend(frameon=False)
    return figure
