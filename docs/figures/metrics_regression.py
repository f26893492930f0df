"""Likelihood, intervals, pinball loss and quantiles of a regression, where the truth is known."""

import math

import torch
from _digits import BLUE, GREY, ORANGE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from stablelightning.functional.intervals import (
    PERCENTS,
    gaussian_probability_below,
    interval_coverage,
    interval_score,
    interval_width,
    level_counts,
    pinball_loss,
    quantile_calibration_error,
    sharpness,
)
from stablelightning.functional.scores import gaussian_negative_log_likelihood
from stablelightning.functional.uncertainty import gaussian_mixture_log_likelihood
from stablelightning.report.style import COLOURS, legend

_ROWS = 20_000
_NINETY = 1.6449  # standard deviations of a central interval of 90 %
_WIDTHS = {"half as wide": 0.5, "right": 1.0, "twice as wide": 2.0}


def draw() -> Figure:
    """Four panels, each with its metrics."""
    target = torch.randn(_ROWS, generator=torch.Generator().manual_seed(0))
    figure = Figure(figsize=(9, 7.4), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for panel, draw_in in zip(panels, (_mixture, _intervals, _pinball, _quantiles), strict=True):
        draw_in(panel, target)
    return figure


def _mixture(axes: Axes, _target: Tensor) -> None:
    means, variances = torch.tensor([-1.5, 1.2, 1.6]), torch.full((3,), 0.16)
    y = torch.linspace(-4, 4, 400)
    grid, at = means[:, None].expand(3, 400), variances[:, None]
    mixture = gaussian_mixture_log_likelihood(grid, at, y).exp()
    mean = means.mean().expand(400)
    total = (variances.mean() + means.var(correction=0)).expand(400)
    gaussian = (-gaussian_negative_log_likelihood(mean, total, y)).exp()
    axes.plot(y, mixture, color=BLUE, label="mixture of 3")
    axes.plot(y, gaussian, color=ORANGE, label="normal, same moments")
    axes.set(xlabel="target", ylabel="density: NLL is minus its logarithm", ylim=0)
    legend(axes, columns=2)


def _intervals(axes: Axes, target: Tensor) -> None:
    factors = torch.linspace(0.3, 2.5, 45)
    ends = [torch.full_like(target, float(_NINETY * factor)) for factor in factors]
    held = [interval_coverage(-end, end, target).mean() for end in ends]
    scores = [interval_score(-end, end, target, level=0.9).mean() / 10 for end in ends]
    widths = [interval_width(-end, end).mean() / 10 for end in ends]
    axes.plot(factors, held, color=BLUE, label="coverage")
    axes.plot(factors, widths, color=GREY, label="width / 10")
    axes.plot(factors, scores, color=ORANGE, label="its score / 10")
    axes.axhline(0.9, color=BLUE, lw=0.8, ls=":")
    axes.axvline(1, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="width of the 90 % interval, of the right one", ylim=(0, 1.2))
    legend(axes, columns=2)


def _pinball(axes: Axes, target: Tensor) -> None:
    guesses = torch.linspace(-2.5, 2.5, 101)
    levels = (0.1, 0.5, 0.9)
    losses = torch.stack(
        [pinball_loss(guess.expand(_ROWS, 3), target, levels).mean(0) for guess in guesses]
    )
    for level, loss, colour in zip(levels, losses.T, COLOURS, strict=False):
        axes.plot(guesses, loss, color=colour, label=f"level {level}")
        right = math.sqrt(2) * torch.erfinv(torch.tensor(2 * level - 1)).item()
        axes.axvline(right, color=colour, lw=0.8, ls=":")
    axes.set(xlabel="predicted quantile (dotted: the right one)", ylabel="pinball loss", ylim=0)
    legend(axes, columns=2)


def _quantiles(axes: Axes, target: Tensor) -> None:
    for (name, width), colour in zip(_WIDTHS.items(), (ORANGE, BLUE, GREY), strict=True):
        variance = torch.full_like(target, width**2)
        below = gaussian_probability_below(torch.zeros_like(target), variance, target)
        error = quantile_calibration_error(below)
        label = f"{name}: error {error:.2f}, sharpness {sharpness(variance):g}"
        axes.plot(PERCENTS, level_counts(below, PERCENTS) / _ROWS, color=colour, label=label)
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="level of the quantile", ylabel="share of targets below it")
    legend(axes, columns=1)
