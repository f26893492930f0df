"""Exact zeros, bounded units, and the gap: what penalties, max-norm and MeasureGap are for."""

import lightning as L
import torch
from _digits import BLUE, GREY, ORANGE, digits
from matplotlib.figure import Figure
from torch import nn

from stablelightning.callbacks import LimitWeightNorm, MeasureGap, RegularizeL1
from stablelightning.functional.regularize import l1_penalty
from stablelightning.module import StableModule

_WIDTH, _EPOCHS = 64, 12
_L1, _BOUND, _RATE = 0.3, 1.0, 0.01


class _Coupled(StableModule):
    """The same penalty as a term of the loss."""

    def training_step(self, batch, batch_idx):
        weights = [self.network[0].weight, self.network[3].weight]
        return super().training_step(batch, batch_idx) + l1_penalty(weights, 0.002)


class _Norms(L.Callback):
    """The norms of the first layer's units, after every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(pl_module.network[0].weight.detach().norm(dim=1))


class _Logged(L.Callback):
    """The training loss as it is logged: with dropout, mean over the epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(float(trainer.callback_metrics["train/loss_epoch"]))


def _train(*callbacks, kind=StableModule, rate=0.002, dropout=0.0):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(64, _WIDTH), nn.ReLU(), nn.Dropout(dropout), nn.Linear(_WIDTH, 8)
    )
    module = kind(network, task="classification", optimizer=lambda p: torch.optim.Adam(p, lr=rate))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=_EPOCHS,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, digits().train_dataloader(), digits().val_dataloader())
    return network


def _zeros(axes) -> None:
    ways = (
        ("a term of the loss", _train(kind=_Coupled), ORANGE),
        ("the proximal step", _train(RegularizeL1(_L1)), BLUE),
    )
    for name, network, colour in ways:
        sizes = network[0].weight.detach().abs().flatten().sort().values
        shares = torch.arange(1, len(sizes) + 1) / len(sizes)
        zeros = int((sizes == 0).sum())
        drawn = sizes.clamp(min=1e-9)
        axes.plot(
            drawn, 100 * shares, color=colour, label=f"{name}: {zeros / len(sizes):.0%} zeros"
        )
    axes.set(xscale="log", xlim=(1e-8, 1), ylim=(0, 100))
    axes.set(xlabel="size of a weight", ylabel="% of weights no larger")
    axes.set_title("L1, first layer, Adam", loc="left")
    axes.legend(frameon=False, loc="upper left")


def _bounds(axes) -> None:
    for name, callbacks, colour in (
        ("without", [], GREY),
        ("max-norm", [LimitWeightNorm(_BOUND)], BLUE),
    ):
        norms = _Norms()
        _train(*callbacks, norms, rate=_RATE, dropout=0.5)
        every = torch.stack(norms.seen)
        axes.plot(every[:, ::4], color=colour, linewidth=0.8, alpha=0.7)
        axes.plot([], [], color=colour, label=name)
    axes.axhline(_BOUND, color=ORANGE, linewidth=1, linestyle="--", label=f"bound {_BOUND:g}")
    axes.set(xlabel="step", ylabel="norm of a unit's weights", ylim=(0, None), xlim=(0, None))
    axes.set_title(f"Max-norm, Adam at {_RATE:g}", loc="left")
    axes.legend(frameon=False, loc="lower right")


def _gap(axes) -> None:
    gap, logged = MeasureGap(rows=2000), _Logged()
    _train(gap, logged, dropout=0.5)
    epochs = range(1, len(gap.gaps) + 1)
    axes.plot(epochs, logged.seen, color=GREY, linestyle="--", label="training, as logged")
    axes.plot(epochs, [g.validation for g in gap.gaps], color=ORANGE, label="validation")
    axes.plot(epochs, [g.train for g in gap.gaps], color=BLUE, label="training, as validated")
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.set_xticks(epochs[2::3])
    axes.set_title("Training loss, dropout 0.5", loc="left")
    axes.legend(frameon=False, loc="upper right")


def draw() -> Figure:
    """Three panels: zeros, bounds, gap."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    with torch.random.fork_rng(), torch.enable_grad():
        for panel, draw_panel in zip(axes, (_zeros, _bounds, _gap), strict=True):
            draw_panel(panel)
    return figure
