"""What sixty blocks of each kind do to a signal and to its gradient before the first step."""

from collections.abc import Callable

import torch
from _digits import BLUE, GREY, ORANGE
from matplotlib.figure import Figure
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.nn import DenseBlock, DensePreActivationBlock, HighwayBlock, ScaledResidual
from stablelightning.report.style import COLOURS

_DEPTH, _WIDTH, _ROWS = 60, 64, 256
_GREEN, _PINK = COLOURS[2:4]


def _branch() -> nn.Module:
    layers = (nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH))
    return nn.Sequential(*layers)


#: How each is made, its colour, dashes and width: three of them lie on each other, at 1.
_STACKS: dict[str, tuple[Callable[[], nn.Module], str, str, float]] = {
    "plain": (lambda: DenseBlock(_WIDTH, _WIDTH, batch_norm=None), GREY, "-", 2),
    "plain, batch norm": (lambda: DenseBlock(_WIDTH, _WIDTH), ORANGE, "-", 2),
    "highway": (lambda: HighwayBlock(_WIDTH), _GREEN, "-", 2),
    "residual": (lambda: DensePreActivationBlock(_WIDTH), BLUE, "-", 6),
    "residual without norm": (lambda: ScaledResidual(_branch()), _PINK, "-", 3.5),
    "plain, sl.initialize": (
        lambda: DenseBlock(_WIDTH, _WIDTH, batch_norm=None),
        "black",
        "--",
        1.5,
    ),
}


def _depths(make: Callable[[], nn.Module], *, initialized: bool) -> tuple[list[float], list[float]]:
    """Standard deviation over the data, and of the gradient, behind each block."""
    torch.manual_seed(0)
    signals: list[Tensor] = [torch.randn(_ROWS, _WIDTH).requires_grad_()]
    stack = nn.Sequential(*(make() for _ in range(_DEPTH)))
    if initialized:
        sl.initialize(stack, signals[0].detach())
    for block in stack.train():
        signals.append(block(signals[-1]))
    last = signals[-1]
    gradients = torch.autograd.grad(last, signals, torch.randn_like(last))
    spread = [signal.std(0).square().mean().sqrt().item() for signal in signals]
    return spread, [gradient.square().mean().sqrt().item() for gradient in gradients]


def draw() -> Figure:
    """Two panels: forward and backward."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    forward, backward = figure.subplots(1, 2, sharex=True)
    for name, (make, colour, line, width) in _STACKS.items():
        depths = _depths(make, initialized="initialize" in name)
        for axes, values in zip((forward, backward), depths, strict=True):
            axes.semilogy(values, line, color=colour, label=name, linewidth=width)
    forward.set(xlabel="block", ylabel="standard deviation over the data", title="signal")
    backward.set(xlabel="block", ylabel="rms of the gradient", title="gradient")
    backward.set_ylim(bottom=1e-24)
    backward.legend(frameon=False, loc="lower right", fontsize="small")
    return figure
