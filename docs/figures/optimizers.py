"""Forty steps of six optimizers down one long valley, from the same point."""

import numpy as np
import torch
from matplotlib.figure import Figure

from stablelightning.report.style import COLOURS, FAINT, INK

_STEPS = 40
_START = (-7.0, 2.0)
_STEEP, _FLAT = 2.0, 0.02  # curvature across the valley and along it

_OPTIMIZERS = {
    "SGD, rate 0.9": lambda p: torch.optim.SGD([p], lr=0.9),
    "momentum, rate 0.1": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9),
    "Nesterov, rate 0.1": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True),
    "AdaGrad, rate 1": lambda p: torch.optim.Adagrad([p], lr=1.0),
    "RMSprop, rate 0.2": lambda p: torch.optim.RMSprop([p], lr=0.2, alpha=0.9),
    "Adam, rate 0.4": lambda p: torch.optim.Adam([p], lr=0.4),
}


def draw() -> Figure:
    """A panel for each, with the valley's contours."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    x, y = np.meshgrid(np.linspace(-8, 3, 200), np.linspace(-2.6, 2.6, 120))
    height = 0.5 * (_FLAT * x**2 + _STEEP * y**2)
    levels = np.geomspace(0.01, height.max(), 10)
    for axes, (name, make) in zip(panels.flat, _OPTIMIZERS.items(), strict=True):
        axes.contour(x, y, height, levels=levels, colors=FAINT, linewidths=0.8)
        path = _path(make)
        axes.plot(*path.T, color=COLOURS[0], linewidth=1.0, marker="o", markersize=2.2)
        axes.plot(0, 0, marker="+", color=COLOURS[1], markersize=10, markeredgewidth=1.6)
        axes.set_title(name, loc="left", color=INK, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _path(make) -> np.ndarray:
    with torch.enable_grad():
        point = torch.tensor(_START, requires_grad=True)
        optimizer = make(point)
        path = [point.detach().clone()]
        for _ in range(_STEPS):
            optimizer.zero_grad()
            (0.5 * (_FLAT * point[0] ** 2 + _STEEP * point[1] ** 2)).backward()
            optimizer.step()
            path.append(point.detach().clone())
    return torch.stack(path).numpy()
