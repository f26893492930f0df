"""What the activations do to a number, and what they leave of its gradient."""

import torch
from _digits import BLUE, GREY, ORANGE
from matplotlib.figure import Figure

from stablelightning.model.activation_names import activation_choice
from stablelightning.report.style import COLOURS

_GREEN, _PINK = COLOURS[2], COLOURS[3]
_PANELS = (
    ("rectifiers", (("relu", BLUE), ("leaky_relu(0.2)", ORANGE), ("elu", _GREEN))),
    ("self-normalizing, smooth", (("selu", BLUE), ("gelu", ORANGE), ("silu", _GREEN))),
    ("bounded", (("sigmoid", BLUE), ("scaled_sigmoid", ORANGE), ("tanh", _GREEN))),
)
_REACH = 4.0


def draw() -> Figure:
    """Functions above, slopes below; the last panel is a maxout unit of three pieces."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    above, below = figure.subplots(2, 4, sharex=True, sharey="row")
    x = torch.linspace(-_REACH, _REACH, 801, dtype=torch.float64)
    for top, bottom, (title, functions) in zip(above, below, _PANELS, strict=False):
        top.set_title(title, fontsize=10)
        for name, color in functions:
            _curves(top, bottom, x, activation_choice(name).make(), color, name)
        top.legend(frameon=False, fontsize=8, loc="upper left")
    _maxout(above[3], below[3], x)
    for axes in (*above, *below):
        axes.axhline(0, color=GREY, linewidth=0.5)
        axes.axvline(0, color=GREY, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    above[0].set(ylabel="f(x)", ylim=(-2.4, 4))
    below[0].set(ylabel="slope f'(x)", ylim=(-0.9, 1.9))
    return figure


def _curves(top, bottom, x, function, color, label) -> None:
    values = x.clone().requires_grad_()
    result = function(values)
    (slope,) = torch.autograd.grad(result.sum(), values)
    top.plot(x, result.detach(), color=color, label=label)
    bottom.plot(x, slope, color=color)


def _maxout(top, bottom, x) -> None:
    slopes, biases = torch.tensor([[-0.6, 0.2, 1.0], [-1.0, 0.0, -1.0]]).double()
    for slope, bias in zip(slopes, biases, strict=True):
        top.plot(x, slope * x + bias, color=GREY, linewidth=0.8, linestyle="--")
    _curves(top, bottom, x, lambda v: (v[:, None] * slopes + biases).amax(1), _PINK, "maxout(3)")
    top.set_title("learned", fontsize=10)
    top.legend(frameon=False, fontsize=8, loc="upper left")
