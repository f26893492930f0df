"""Gradient norm of every layer of a deep network from PyTorch's default, over a short training."""

from itertools import pairwise

import lightning as L
import torch
from _digits import digits
from matplotlib.figure import Figure
from torch import nn

from stablelightning.callbacks import MonitorSignals
from stablelightning.module import StableModule
from stablelightning.report.monitor import gradient_heat_map

_DEPTH, _EPOCHS = 16, 8


def draw() -> Figure:
    """The heat map that a monitored run leaves."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        widths = [64, *(_DEPTH - 1) * [48], 8]
        layers = [
            module
            for fan_in, fan_out in pairwise(widths)
            for module in (nn.Linear(fan_in, fan_out), nn.ReLU())
        ]
        module = StableModule(nn.Sequential(*layers[:-1]), task="classification")
        monitor = MonitorSignals(every_n_steps=4)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=_EPOCHS,
            logger=False,
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train_dataloaders=digits().train_dataloader())
    history = monitor.history
    return gradient_heat_map(history.steps, history.layers, history.table("grad_norm"))
