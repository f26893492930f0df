"""Accuracy on digits against the share of zeros: pruned while training, and after it."""

import copy

import lightning as L
import torch
from _digits import digits, split
from matplotlib.figure import Figure
from torch import nn

from stablelightning.callbacks import PruneGradually
from stablelightning.model.prune import prune_model
from stablelightning.module import StableModule
from stablelightning.nn import MLP
from stablelightning.report.style import COLOURS, MUTED, legend, new_figure, tidy

_SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_EPOCHS = 20


def trained(sparsity: float | None) -> nn.Module:
    """The same network from the same weights, on the same batches."""
    torch.manual_seed(0)
    module = StableModule(MLP(64, 8, hidden=[300, 100], dropout=0.1), task="classification")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=_EPOCHS,
        limit_val_batches=0,
        logger=False,
        callbacks=[PruneGradually(sparsity)] if sparsity else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=digits().train_dataloader())
    return module.network.eval()


def accuracy(network: nn.Module) -> float:
    """Of the test split, in percent."""
    inputs, target = split("test")
    with torch.no_grad():
        return 100 * (network(inputs).argmax(1) == target).double().mean().item()


def pruned(network: nn.Module, sparsity: float) -> nn.Module:
    """A copy without its smallest weights."""
    network = copy.deepcopy(network)
    prune_model(network, sparsity)
    return network


def draw() -> Figure:
    """Two lines, and the dense network as a third."""
    with torch.random.fork_rng(), torch.enable_grad():
        dense = trained(None)
        gradual = [accuracy(trained(share)) for share in _SHARES]
    once = [accuracy(pruned(dense, share)) for share in _SHARES]
    figure = new_figure(7, 3.2)
    axes = figure.subplots()
    places = range(len(_SHARES))
    plain = accuracy(dense)
    axes.axhline(plain, color=MUTED, linewidth=1.2, linestyle="--", label="dense")
    for scores, colour, label in (
        (gradual, COLOURS[0], "PruneGradually"),
        (once, COLOURS[1], "pruned after training"),
    ):
        axes.plot(places, scores, color=colour, marker="o", markersize=4, label=label)
    axes.set_xticks(places, labels=[f"{share:.0%}" for share in _SHARES])
    axes.set_ylim(0, 104)
    tidy(axes, x="weights that are zero", y="test accuracy (%)")
    legend(axes, columns=3)
    return figure
