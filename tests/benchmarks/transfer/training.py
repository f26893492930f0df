"""How everything here is trained: by the Trainer, from the package's pieces, on one core."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from stablelightning.model.schedules import OneCycle
from stablelightning.module import StableModule
from stablelightning.nn import ConvNet

#: Of AdamW, in every training here.
WEIGHT_DECAY = 1e-2

#: Channels of the stages of the network of colour images: 0.39 million parameters.
CHANNELS = (32, 64, 128, 256)


def colour_network(outputs: int) -> nn.Module:
    """For images of 32 x 32 pixels; channels last, in which a CPU is half as fast again."""
    network = ConvNet(3, outputs, channels=CHANNELS, dropout=0.0)
    return network.to(memory_format=torch.channels_last)


def settings(learning_rate: float) -> dict[str, Any]:
    """Optimizer and schedule of a module."""
    return {
        "optimizer": partial(torch.optim.AdamW, lr=learning_rate, weight_decay=WEIGHT_DECAY),
        "scheduler": OneCycle,
    }


def classifier(network: nn.Module, learning_rate: float) -> StableModule:
    return StableModule(network, task="classification", **settings(learning_rate))


def large_classifier(network: nn.Module, learning_rate: float) -> StableModule:
    """With SGD, for tens of thousands of images; momentum goes up and down with the rate."""
    made = partial(
        torch.optim.SGD, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return StableModule(network, task="classification", optimizer=made, scheduler=OneCycle)


def trainer(epochs: int, callbacks: Sequence[L.Callback] = (), *, half: bool = False) -> L.Trainer:
    """A Trainer that leaves nothing behind.

    Args:
        epochs: of the training; validation is left to the caller.
        callbacks: of it.
        half: compute in bfloat16, where a CPU is twice as fast.
    """
    return L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed" if half else "32-true",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def error(trained: L.Trainer, module: L.LightningModule, loader: Any) -> float:
    """Share of a loader's images that get another class than theirs, in percent."""
    found = trained.test(module, dataloaders=loader, verbose=False)[0]
    return 100 * (1 - found["test/accuracy"])


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Leave the file ``path`` by ``make``, unless it is there; what ``make`` told is kept beside.

    Args:
        path: says by its name how the file is made.
        make: leaves it, and tells of it in plain types.
    """
    beside = path.with_suffix(".json")
    if not path.exists():
        began = time.perf_counter()
        told = make()
        beside.write_text(json.dumps(told | {"minutes": (time.perf_counter() - began) / 60}))
    told = json.loads(beside.read_text()) if beside.exists() else {}
    return {"file": path.name, **told}
