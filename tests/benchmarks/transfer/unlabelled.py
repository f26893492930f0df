"""Pretraining on 20,000 images without labels, then 50 labels per class.

One network of each objective serves all seeds: what differs between seeds is which images are
labelled, the head's weights and the order of the batches. The labelled images are among the 20,000.
Every arm, scratch too, has the same network, labels, epochs, augmentation and tuning trials.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.pretraining import DenoisingAutoencoder, Pretraining, RotationPrediction
from stablelightning.pretraining.contrastive import SimCLR
from tests.benchmarks.cifar import CifarData, folder_of
from tests.benchmarks.paired import differences
from tests.benchmarks.record import Job, Run
from tests.benchmarks.transfer.arms import TUNING_SEEDS, compare, flat, table_of
from tests.benchmarks.transfer.plans import SCRATCH
from tests.benchmarks.transfer.training import (
    classifier,
    colour_network,
    error,
    once,
    settings,
    trainer,
)

TITLE = "Pretraining on 20,000 images without labels, 50 labels per class"
NEEDS_ROOT = True

CLASSES = 10

#: Of each class: images, and labels.
IMAGES, LABELS = 2000, 50

#: Points of accuracy above scratch that are asked of the best objective.
BOUND = 5.0

#: What each objective is made by, its epochs, its batch size and its learning rate.
OBJECTIVES: dict[str, tuple[Callable[..., Pretraining], int, int, float]] = {
    "autoencoder": (DenoisingAutoencoder, 6, 128, 2e-3),
    "rotation": (RotationPrediction, 10, 64, 3e-3),
    "contrastive": (partial(SimCLR, temperature=0.2), 8, 256, 3e-3),
}

#: Passes over the labelled images, in epochs of ten passes.
EPOCHS, COPIES, BATCH = 4, 10, 50

RATES = (5e-4, 2e-3, 6e-3)


def pretrain(root: str, objective: str) -> dict[str, Any]:
    """Leave a backbone file, unless there is one of the same settings."""
    path = backbone(root, objective)
    return once(path, partial(_pretrained, root, objective, path))


def _pretrained(root: str, objective: str, path: Path) -> dict[str, Any]:
    make, epochs, batch, rate = OBJECTIVES[objective]
    L.seed_everything(0, verbose=False)
    module = make(colour_network(CLASSES), **settings(rate))
    # What draws views of its own is given the images as they are.
    data = CifarData(root, pool=IMAGES, batch_size=batch, augment=objective != "contrastive")
    fitted = trainer(epochs, half=True)
    fitted.fit(module, datamodule=data)
    module.export_backbone(path)
    return {"loss": float(fitted.callback_metrics["train/loss_epoch"])}


def backbone(root: str, objective: str) -> Path:
    """Its path says how it is made."""
    _, *made = OBJECTIVES[objective]
    said = "-".join(f"{value:g}" for value in made)
    return folder_of(root) / f"unlabelled-{objective}-{said}.safetensors"


def train(root: str, arm: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """Train one arm, and give its error in percent."""
    began = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    module = classifier(colour_network(CLASSES), rate)
    callbacks: list[L.Callback] = []
    if arm != SCRATCH:
        pretrain(root, arm)  # done, unless its file was lost since
        callbacks = [PretrainFirst(weights=str(backbone(root, arm)))]
    data = CifarData(
        root, pool=IMAGES, per_class=LABELS, seed=seed, batch_size=BATCH, copies=COPIES
    )
    fitted = trainer(EPOCHS, callbacks, half=True)
    fitted.fit(module, datamodule=data)
    found = error(fitted, module, data.loader(part))
    return {"error": found, "seconds": time.perf_counter() - began}


def measure(run: Run) -> dict[str, Any]:
    """Pretrain, tune and compare."""
    root = {"root": str(run.root)}
    jobs = {f"pretrain {name}": Job(pretrain, root | {"objective": name}) for name in OBJECTIVES}
    made = run.all(jobs)
    arms = dict.fromkeys([SCRATCH, *OBJECTIVES], RATES)
    # One seed of tuning: the validation images are 5,000.
    found = compare(run, train, arms=arms, cases={"": root}, tuning_seeds=TUNING_SEEDS[:1])
    return found | {"pretraining": made, "bound": BOUND}


def table(result: dict[str, Any]) -> str:
    """The arms, and whether the best one is as far above scratch as was asked."""
    errors = {arm: flat(found) for arm, found in result["errors"].items()}
    gained = {n: differences(errors[SCRATCH], e) for n, e in errors.items() if n != SCRATCH}
    best = max(gained, key=lambda name: gained[name].mean)
    verdict = "met" if gained[best].mean >= BOUND else "missed"
    return (
        f"{table_of(result)}\n\n"
        f"Best: {best}, {gained[best]} points above scratch (asked: {BOUND:g}; {verdict})."
    )
