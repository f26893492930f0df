"""One training with bad batches, twice: with the guard and without it."""

import tempfile
import warnings
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from _digits import digits
from matplotlib.figure import Figure
from torch import Tensor, nn

from stablelightning.callbacks import GuardTraining
from stablelightning.report.style import COLOURS, MUTED, legend, new_figure, say, tidy

_EPOCHS, _EVERY = 16, 60


class _Training(L.LightningModule):
    """A classifier; one batch in sixty has a wrong sign, and is ten thousand times too large."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return F.cross_entropy(self.network(x * -1e4 if number % _EVERY == _EVERY - 1 else x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class _Losses(L.Callback):
    """What every batch lost, undone ones too; what a module keeps would be undone with them."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.values.append(float(outputs["loss"]))


def _trained(*callbacks: L.Callback) -> list[float]:
    torch.manual_seed(0)
    losses = _Losses()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        L.Trainer(
            accelerator="cpu",
            max_epochs=_EPOCHS,
            logger=False,
            default_root_dir=folder,
            callbacks=[*callbacks, losses],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(_Training(), train_dataloaders=digits().train_dataloader())
    return losses.values


def draw() -> Figure:
    """The loss of both, batch by batch."""
    with torch.random.fork_rng(), torch.enable_grad():
        guard = GuardTraining()
        runs = {"guarded": _trained(guard), "unguarded": _trained()}
    figure = new_figure(7.2, 3.4)
    axes = figure.subplots()
    axes.set_yscale("log")
    for (name, losses), colour in zip(runs.items(), COLOURS, strict=False):
        axes.plot(losses, color=colour, linewidth=1.0, label=name)
    bad = range(_EVERY - 1, len(runs["guarded"]), _EVERY)
    for number, place in enumerate(bad):
        label = "" if number else "a bad batch"
        axes.axvline(place, color=MUTED, linewidth=0.8, linestyle=":", zorder=1, label=label)
    tidy(axes, x="batch", y="loss")
    legend(axes, columns=3)
    say(figure, f"The guard undid {guard.skipped} of {len(bad)} bad batches, and nothing else")
    return figure
