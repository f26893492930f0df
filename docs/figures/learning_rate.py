"""What FindLearningRate tries on a six-layer ReLU net with SGD, whose rate was set far too high."""

from itertools import pairwise
from typing import Any

import lightning as L
import torch
from _digits import digits
from matplotlib.figure import Figure
from torch import nn

import stablelightning as sl
from stablelightning.callbacks import FindLearningRate
from stablelightning.module import StableModule
from stablelightning.report.learning_rate import learning_rate_figure

_DEPTH, _SET = 6, 3.0


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=_SET)


def draw() -> Figure:
    """The picture that a run with the finder leaves."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        layers = [
            module
            for fan_in, fan_out in pairwise([*_DEPTH * [64], 8])
            for module in (nn.Linear(fan_in, fan_out), nn.ReLU())
        ]
        network = nn.Sequential(*layers[:-1])
        sl.initialize(network, torch.randn(16, 64))
        find = FindLearningRate(apply=False, required=False)
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            callbacks=[find],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = StableModule(network, task="classification", optimizer=_sgd)
        trainer.fit(module, train_dataloaders=digits().train_dataloader())
    return learning_rate_figure({**find.history, "applied": True})
