"""Confidence against accuracy on the test digits, plain and sampled."""

import torch
from _digits import split, trained
from matplotlib.figure import Figure

import stablelightning as sl
from stablelightning.report import plots

_SAMPLES = 100


def draw() -> Figure:
    """The reliability diagram that a run leaves as well."""
    inputs, target = split("test")
    with torch.no_grad():
        plain = trained()(inputs).softmax(1)
    sampled = sl.mc_dropout(trained(), inputs, samples=_SAMPLES, seed=0).mean
    return plots.reliability_diagram(
        {"plain forward": plain, f"mean of {_SAMPLES} samples": sampled}, target
    )
