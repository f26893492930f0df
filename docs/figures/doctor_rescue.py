"""Fifty layers on digits, as PyTorch makes them and as the doctor leaves them."""

import torch
from _digits import BLUE, ORANGE, digits, split
from matplotlib.figure import Figure
from torch import nn

import stablelightning as sl
from stablelightning.nn import DeepMLP
from stablelightning.report.style import INK, legend, tidy

_EPOCHS = 12


def _curve(*, cured: bool) -> list[float]:
    """Share of the test digits that are read right, after each epoch."""
    inputs, target = split("train")
    test, truth = split("test")
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        network = DeepMLP(64, 8, depth=50, width=64)
        if cured:
            sl.diagnose(network, (inputs[:256], target[:256])).apply()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        shares = []
        for _ in range(_EPOCHS):
            for rows, classes in digits().train_dataloader():
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(rows), classes).backward()
                optimizer.step()
            shares.append((network(test).argmax(1) == truth).float().mean().item())
    return shares


def draw() -> Figure:
    """Accuracy over epochs, the same seed, data and optimizer."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, _EPOCHS + 1)
    for cured, colour, label in ((False, ORANGE, "as it is made"), (True, BLUE, "after apply()")):
        shares = _curve(cured=cured)
        axes.plot(epochs, shares, color=colour, marker="o", markersize=3.5, label=label)
        axes.annotate(
            f"{100 * shares[-1]:.0f} %",
            (_EPOCHS, shares[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter("{x:.0%}")
    tidy(axes, x="epoch", y="test digits read right")
    legend(axes, columns=2)
    return figure
