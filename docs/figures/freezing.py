"""Which groups of a network are open when, and at which rate, under four plans of fine-tuning."""

import lightning as L
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks import (
    FineTuneAll,
    ProbeThenTune,
    TrainLastGroups,
    UnfreezeGradually,
)
from stablelightning.model.schedules import WarmupCosine
from stablelightning.report.style import INK

_LAYERS, _EPOCHS, _BATCHES, _RATE = 6, 8, 25, 1e-2
_FROZEN = "#E8E8E8"
_PLANS = {
    "TrainLastGroups(2)": TrainLastGroups(2),
    "UnfreezeGradually()": UnfreezeGradually(),
    "FineTuneAll(layer_decay=0.5)": FineTuneAll(layer_decay=0.5),
    "ProbeThenTune()": ProbeThenTune(),
}


class _Network(L.LightningModule):
    """Any module: what it is trained on does not matter here."""

    def __init__(self):
        super().__init__()
        layers = []
        for _ in range(_LAYERS - 1):
            layers += [nn.Linear(8, 8), nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(8, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) ** 2).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=_RATE)
        schedule = WarmupCosine(optimizer, total_steps=_EPOCHS * _BATCHES)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class _Rates(L.Callback):
    """The rate of every layer at every step; none where it is frozen."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        groups = trainer.optimizers[0].param_groups
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        weights = [layer.weight for layer in pl_module.net if isinstance(layer, nn.Linear)]
        self.seen.append([rates[id(w)] if w.requires_grad else np.nan for w in weights])


def _rates(plan):
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        watch = _Rates()
        data = DataLoader(TensorDataset(torch.randn(4 * _BATCHES, 8)), batch_size=4)
        L.Trainer(
            accelerator="cpu",
            max_epochs=_EPOCHS,
            logger=False,
            callbacks=[plan, watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(_Network(), data)
    return np.array(watch.seen).T


def draw() -> Figure:
    """One panel for each plan, as a training went through it."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    look = LogNorm(_RATE / 100, _RATE)
    for axes, (name, plan) in zip(panels.flat, _PLANS.items(), strict=True):
        axes.set_facecolor(_FROZEN)
        edges = np.linspace(0, _EPOCHS, _EPOCHS * _BATCHES + 1)
        rows = np.arange(_LAYERS + 1) - 0.5
        mesh = axes.pcolormesh(edges, rows, _rates(plan), norm=look, cmap="viridis_r")
        axes.hlines(rows[1:-1], 0, _EPOCHS, color="white", linewidth=1.2)
        axes.grid(False)
        axes.set_title(name, loc="left", color=INK, family="monospace", fontsize=9)
        axes.set_yticks(range(_LAYERS), ["input", *[""] * (_LAYERS - 2), "head"])
        axes.tick_params(length=0)
    for axes in panels[1]:
        axes.set_xlabel("epochs")
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8, aspect=28, extend="min")
    bar.set_label("learning rate (grey: frozen)")
    bar.outline.set_visible(False)
    return figure
