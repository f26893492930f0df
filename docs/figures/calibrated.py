"""Calibration: the temperature of the likeliest targets, what it does, and quantiles of errors."""

import math

import torch
from _digits import BLUE, GREY, ORANGE, split, trained
from matplotlib.figure import Figure
from torch import Tensor, nn

import stablelightning as sl
from stablelightning.calibration import (
    IsotonicCalibration,
    QuantileRecalibration,
    TemperatureScaling,
    VarianceScaling,
)
from stablelightning.functional.calibrate import temper
from stablelightning.functional.scores import gaussian_negative_log_likelihood as gaussian_nll
from stablelightning.functional.scores import negative_log_likelihood
from stablelightning.model.prediction import Prediction
from stablelightning.nn import GaussianHead
from stablelightning.report.style import COLOURS

_SAMPLES, _BINS = 50, 8
#: Grey noise on the pixels, which the network has not seen in training.
_NOISE = 1.8
GREEN = COLOURS[2]


def _noisy(part: str, seed: int) -> tuple[Prediction, Tensor]:
    inputs, target = split(part)
    generator = torch.Generator().manual_seed(seed)
    copies = 6 if part == "val" else 8
    inputs, target = inputs.repeat(copies, 1), target.repeat(copies)
    inputs = inputs + _NOISE * torch.randn(inputs.shape, generator=generator)
    return sl.mc_dropout(trained(), inputs, samples=_SAMPLES, seed=0), target


def _temperatures(axes, known: Prediction, target: Tensor, fitted: TemperatureScaling) -> None:
    grid = torch.linspace(math.log(0.4), math.log(5), 61).exp()
    nll = [negative_log_likelihood(temper(known.mean, float(t)), target).mean() for t in grid]
    axes.plot(grid, nll, color=BLUE)
    least = negative_log_likelihood(temper(known.mean, fitted.temperature), target).mean()
    axes.plot(fitted.temperature, least, "o", color=ORANGE)
    axes.annotate(
        f"{fitted.temperature:.2f}",
        (fitted.temperature, float(least)),
        xytext=(0, 8),
        textcoords="offset points",
        color=ORANGE,
        ha="center",
    )
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="temperature", ylabel="negative log-likelihood (nats)")
    axes.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_title("Validation: one optimum", loc="left")


def _reliability(axes, shown: dict[str, tuple[Tensor, str]], target: Tensor) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for name, (mean, colour) in shown.items():
        confidence, chosen = mean.max(1)
        right = (chosen == target).double()
        # As many rows in every bin, so that each point says as much.
        parts = confidence.argsort().chunk(_BINS)
        points = [(confidence[part].mean(), right[part].mean()) for part in parts]
        nll = negative_log_likelihood(mean, target).mean()
        axes.plot(
            *zip(*points, strict=True),
            "o-",
            color=colour,
            markersize=3,
            label=f"{name}: {nll:.3f} nats",
        )
    axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(0.2, 1), ylim=(0.2, 1.02))
    axes.legend(loc="upper left", fontsize=7.5, handlelength=1.2)
    axes.set_title("Test: as sure as right", loc="left")


class _Values(nn.Module):
    task = "regression"

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Dropout(0.05), GaussianHead(50))

    def forward(self, x: Tensor):
        return self.net(x)


def _lopsided(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Delays: never early, sometimes very late."""
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(count, 1, generator=generator) - 3
    late = -torch.rand(count, generator=generator).clamp(min=1e-6).log()
    return x, x[:, 0].sin() + 0.6 * late**1.5


def _values() -> nn.Module:
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model, (x, y) = _Values(), _lopsided(400, 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(400):
            optimizer.zero_grad()
            mean, variance = model(x)
            gaussian_nll(mean, variance, y).mean().backward()
            optimizer.step()
    return model.eval()


def _intervals(axes) -> None:
    model = _values()
    (known_x, known), (new_x, new) = _lopsided(1000, 1), _lopsided(4000, 2)
    validation, test = (
        sl.mc_dropout(model, x, samples=_SAMPLES, seed=0, keep_samples=True)
        for x in (known_x, new_x)
    )
    levels = torch.linspace(0.05, 0.95, 19)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    shown = {
        "samples": (test, BLUE),
        "one factor": (VarianceScaling().fit(validation, known)(test), GREEN),
        "quantiles": (QuantileRecalibration().fit(validation, known)(test), ORANGE),
    }
    for name, (prediction, colour) in shown.items():
        shares = []
        for level in levels.tolist():
            lower, upper = prediction.interval(level)
            shares.append(((lower <= new) & (new <= upper)).double().mean())
        axes.plot(levels, shares, color=colour, label=name)
    axes.set(xlabel="promised share", ylabel="share inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    axes.set_title("Intervals, lopsided errors", loc="left")


def draw() -> Figure:
    """Three panels: the likelihood over the temperature, reliability, and intervals."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    known, known_target = _noisy("val", seed=1)
    new, target = _noisy("test", seed=2)
    temperature = TemperatureScaling().fit(known, known_target)
    isotonic = IsotonicCalibration().fit(known, known_target)
    _temperatures(left, known, known_target, temperature)
    shown = {
        "samples": (new.mean, BLUE),
        "temperature": (temperature(new).mean, ORANGE),
        "isotonic": (isotonic(new).mean, GREEN),
    }
    _reliability(middle, shown, target)
    _intervals(right)
    return figure
