"""Ninety percent of the weights pruned on digits, against the dense network: ways, seeds, files.

Each way trains the same network from the same weights, on the same batches, for as many epochs. The
accuracy is that of the test split after the last epoch: nothing is chosen by it. The settings of
the callbacks are their defaults.
"""

import copy
import logging
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import nn

from stablelightning.callbacks import PruneByL1, PruneGradually
from stablelightning.data import DigitsData
from stablelightning.model.prune import (
    layer_sparsity,
    prunable_weights,
    prune_model,
    total_sparsity,
)
from stablelightning.model.sparse_file import sizes_on_disk
from stablelightning.module import StableModule
from stablelightning.nn import MLP, ConvNet, RecurrentNet

TITLE = "90% sparse networks on digits"

SPARSITY = 0.9

#: Largest loss of accuracy of the way that is meant for it, in points.
BOUND = 1.0

EPOCHS = 40
BATCH = 64
LEARNING_RATE = 2e-3

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-300-100-10": lambda: MLP(64, 10, hidden=[300, 100], dropout=0.2),
    "ConvNet 32-64": lambda: ConvNet(1, 10, channels=[32, 64], dropout=0.1),
    "LSTM 64, row by row": lambda: RecurrentNet(8, 10, hidden=[64], dropout=0.2, layer=nn.LSTM),
}

DENSE = "dense"
MEANT = "PruneGradually"
LATER = "dense, pruned after training"
WAYS: dict[str, Callable[[], L.Callback] | None] = {
    DENSE: None,
    MEANT: partial(PruneGradually, SPARSITY),
    "PruneGradually, per layer": partial(PruneGradually, SPARSITY, per_layer=True),
    "PruneByL1": partial(PruneByL1, SPARSITY),
    "all at once at 60%": partial(PruneGradually, SPARSITY, start=0.6, end=0.6),
}


def train(network: str, way: str, seed: int) -> tuple[StableModule, DigitsData]:
    """Train one network in one way."""
    torch.manual_seed(seed)
    image = network.startswith("ConvNet")
    data = DigitsData(image=image, held_out=[], batch_size=BATCH, seed=seed)
    module = StableModule(
        NETWORKS[network](),
        task="classification",
        optimizer=partial(torch.optim.Adam, lr=LEARNING_RATE),
    )
    make = WAYS[way]
    torch.manual_seed(seed)  # the same batches and dropout whatever the weights drew
    _trainer(max_epochs=EPOCHS, limit_val_batches=0, callbacks=[make()] if make else []).fit(
        module, datamodule=data
    )
    return module, data


def accuracy(module: StableModule, data: DigitsData) -> float:
    """Of the test split, in percent."""
    (scores,) = _trainer().test(module, datamodule=data, verbose=False)
    return 100 * scores["test/accuracy"]


def _trainer(**settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def measure(seeds: int) -> dict[str, Any]:
    """Every network in every way, from as many seeds."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return {
        "bound": BOUND,
        "networks": {network: _measured(network, seeds) for network in NETWORKS},
    }


def _measured(network: str, seeds: int) -> dict[str, Any]:
    found: dict[str, dict[str, list[float]]] = {
        way: {"accuracy": [], "sparsity": []} for way in (*WAYS, LATER)
    }
    sizes: list[dict[str, int]] = []
    layers: dict[str, list[list[Any]]] = {}
    for seed in range(seeds):
        for way in WAYS:
            module, data = train(network, way, seed)
            models = {way: module}
            if way == DENSE:
                models[LATER] = copy.deepcopy(module)
                prune_model(models[LATER].network, SPARSITY)
            for name, model in models.items():
                counted = layer_sparsity(prunable_weights(model.network))
                found[name]["accuracy"].append(accuracy(model, data))
                found[name]["sparsity"].append(total_sparsity(counted))
                layers[name] = [[a.layer, a.weights, a.zeros] for a in counted]
            if way == MEANT:
                sizes.append(sizes_on_disk(module.network))
    dense = found[DENSE]["accuracy"]
    for values in found.values():
        values["loss"] = [d - a for d, a in zip(dense, values["accuracy"], strict=True)]
    return {"ways": found, "bytes": sizes[-1], "layers_of_the_last_seed": layers}


def table(result: dict[str, Any]) -> str:
    """One row per network and way; then the files."""
    lines = [
        "| network | way | sparsity | accuracy % | points lost: mean | most | by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, measured in result["networks"].items():
        for way, values in measured["ways"].items():
            loss = values["loss"]
            lines.append(
                f"| {network} | {way} | {statistics.fmean(values['sparsity']):.2%} "
                f"| {statistics.fmean(values['accuracy']):.2f} | {statistics.fmean(loss):+.2f} "
                f"| {max(loss):+.2f} | {', '.join(f'{value:+.1f}' for value in loss)} |"
            )
    lines += ["", "| network | " + " | ".join(_KINDS) + " |", "|---" * (len(_KINDS) + 1) + "|"]
    for network, measured in result["networks"].items():
        sizes = " | ".join(f"{measured['bytes'][kind] / 1024:.0f} KiB" for kind in _KINDS)
        lines.append(f"| {network} | {sizes} |")
    means = [statistics.fmean(m["ways"][MEANT]["loss"]) for m in result["networks"].values()]
    lines += ["", f"Largest mean loss of {MEANT}: {max(means):+.2f}, bound {result['bound']:+.2f}."]
    return "\n".join(lines)


_KINDS = ("dense", "dense_zipped", "sparse", "sparse_zipped")
