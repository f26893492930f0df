"""Gradient norms of a recurrent network in training, and the threshold that they chose."""

from functools import partial

import lightning as L
import torch
from _digits import digits
from matplotlib.figure import Figure

from stablelightning.callbacks import ClipGradientNorm
from stablelightning.module import StableModule
from stablelightning.nn import RecurrentNet
from stablelightning.report.clip import clipping_curve

_EPOCHS = 16
_RATE = 0.1  # large enough for the gradient to explode now and then


def draw() -> Figure:
    """What a run leaves as plots/clipping.png."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        network = RecurrentNet(
            8, 8, hidden=[64], dropout=0.0, layer=partial(torch.nn.RNN, nonlinearity="relu")
        )
        module = StableModule(
            network,
            task="classification",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=_RATE, momentum=0.9),
        )
        clip = ClipGradientNorm()
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=_EPOCHS,
            logger=False,
            callbacks=[clip],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train_dataloaders=digits().train_dataloader())
    return clipping_curve(clip.records[0], first=clip.first_norms[0])
