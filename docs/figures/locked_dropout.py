"""Which features of one sequence are dropped at each step, by ordinary and by locked dropout."""

import torch
from _digits import BLUE
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import nn

from stablelightning.nn import LockedDropout

_STEPS, _FEATURES, _RATE = 12, 24, 0.3


def draw() -> Figure:
    """Two masks side by side."""
    torch.manual_seed(0)
    sequence = torch.ones(_STEPS, 1, _FEATURES)
    masks = {
        "nn.Dropout: a mask for each step": nn.Dropout(_RATE).train()(sequence),
        "LockedDropout: a mask for the sequence": LockedDropout(_RATE).train()(sequence),
    }
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    for axes, (title, mask) in zip(figure.subplots(1, 2, sharey=True), masks.items(), strict=True):
        axes.pcolormesh(
            mask[:, 0].bool().T, cmap=ListedColormap(["white", BLUE]), edgecolors="white"
        )
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="step", xticks=[])
        axes.spines[:].set_visible(False)
    figure.axes[0].set(ylabel="feature", yticks=[])
    return figure
