"""What each score of probabilities says of a classifier that is made more, or less, sure."""

import torch
from _digits import split, trained
from matplotlib.figure import Figure

from stablelightning.functional.brier import brier_decomposition
from stablelightning.functional.calibration_error import (
    adaptive_calibration_error,
    classwise_calibration_error,
)
from stablelightning.functional.scores import brier_score, negative_log_likelihood
from stablelightning.report.style import COLOURS, MUTED, legend

_NOISE = 0.8  # of a pixel's standard deviation: enough for errors
_COPIES = 8


def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of test digits under noise, and their targets."""
    inputs, target = split("test")
    generator = torch.Generator().manual_seed(0)
    inputs = inputs.repeat(_COPIES, 1)
    noise = torch.randn(inputs.shape, generator=generator)
    with torch.no_grad():
        return trained()(inputs + _NOISE * noise), target.repeat(_COPIES)


def draw() -> Figure:
    """Scores over the temperature, and the parts of the Brier score."""
    logits, target = noisy()
    temperatures = torch.logspace(-1, 1, 31, base=5)
    rows = [(logits / t).softmax(1) for t in temperatures]
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)

    scores = {
        "NLL (nats)": [negative_log_likelihood(p, target).mean() for p in rows],
        "Brier": [brier_score(p, target).mean() for p in rows],
        "adaptive ECE": [adaptive_calibration_error(p, target) for p in rows],
        "classwise ECE": [classwise_calibration_error(p, target) for p in rows],
    }
    for (name, values), colour in zip(scores.items(), COLOURS, strict=False):
        values = torch.stack(values)
        left.plot(temperatures, values, color=colour, label=name)
        best = int(values.argmin())
        left.plot(temperatures[best], values[best], "o", color=colour, markersize=5)
    left.set(xscale="log", xlabel="temperature: more sure to the left", ylabel="score", ylim=0)
    ticks = [0.2, 0.5, 1, 2, 5]
    legend(left, columns=2)

    parts = [brier_decomposition(p, target) for p in rows]
    for name, colour in zip(("reliability", "resolution", "uncertainty"), COLOURS, strict=False):
        right.plot(temperatures, [getattr(part, name) for part in parts], color=colour, label=name)
    right.plot(temperatures, [part.score for part in parts], color=MUTED, ls="--", label="Brier")
    right.set(xscale="log", xlabel="temperature: more sure to the left", ylim=0)
    right.set_ylabel("part of the Brier score")
    legend(right, columns=2)
    for axes in (left, right):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    return figure
