"""Digits 0 to 4, then 5 to 9 with ten labels of each: every plan of fine-tuning, and from scratch.

Half of the images of 5 to 9 test, and a quarter validates: both are the same for all seeds, which
draw the labelled images from the last quarter. The network is pretrained once for each seed, on 0
to 4 in eight orientations, each digit in each of them being a class of its own: so few classes say
little about shapes that are in none of them.
"""

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.data import DigitsData
from stablelightning.data.base import Part
from stablelightning.functional.augment import random_crops
from stablelightning.model.depth import depth_groups
from stablelightning.nn import ConvBlock
from stablelightning.pretraining import AuxiliaryTask
from tests.benchmarks.cifar import folder_of
from tests.benchmarks.paired import differences
from tests.benchmarks.record import Job, Run
from tests.benchmarks.transfer.arms import TUNING_SEEDS, compare, flat, table_of
from tests.benchmarks.transfer.plans import AUTO, FULL, GRADUAL, HEAD, PLANS, SCRATCH
from tests.benchmarks.transfer.training import classifier, error, once, settings, trainer

TITLE = "Digits 0 to 4, then 5 to 9 with ten labels of each"
NEEDS_ROOT = False

KNOWN, NEW = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)

#: Training images of each new digit.
LABELS = 10

#: Of the split that all seeds share.
SPLIT, VALIDATION_SHARE, TEST_SHARE = 0, 0.25, 0.5

ORIENTATIONS = 8

#: Of the pretraining: epochs, images of a batch, learning rate.
PRETRAINING = (40, 32, 1e-2)

EPOCHS, BATCH = 40, 10

RATES = (1e-3, 3e-3, 1e-2, 3e-2)

#: Transfer's error is at most this share of scratch's; auto is at most so many points behind.
BOUND, AUTO_BOUND = 0.5, 1.0


def network(outputs: int) -> nn.Module:
    """For images of 8 x 8 pixels: what is left of the image is not averaged but read."""
    return nn.Sequential(
        ConvBlock(1, 32),
        nn.MaxPool2d(2),
        ConvBlock(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(256, outputs),
    )


class FewDigits(DigitsData):
    """The new digits, of one split, with labelled images that are drawn by another seed.

    Args:
        draw: that seed.
    """

    def __init__(self, draw: int) -> None:
        super().__init__(
            held_out=KNOWN,
            image=True,
            batch_size=BATCH,
            val_fraction=VALIDATION_SHARE,
            test_fraction=TEST_SHARE,
            seed=SPLIT,
        )
        self.draw = draw

    def part(self, name: Part) -> Dataset[Any] | None:
        """Ten training images of each digit; the other parts as they are."""
        whole = super().part(name)
        if name != "train" or whole is None:
            return whole
        inputs, target = (torch.stack(column) for column in zip(*whole, strict=True))
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(self.draw))
        rows = torch.cat([order[target[order] == number][:LABELS] for number in range(len(NEW))])
        return TensorDataset(inputs[rows], target[rows])


def oriented(batch: Any) -> tuple[Tensor, Tensor]:
    """Every image, leaning and moved a little, in eight orientations, each with its own label."""
    inputs, target = batch
    inputs = random_crops(inputs, area=(0.5, 1.0), rotation=20.0)
    turned = [torch.rot90(inputs, quarter, (2, 3)) for quarter in range(4)]
    images = [*turned, *(image.flip(3) for image in turned)]
    labels = [target * ORIENTATIONS + number for number in range(ORIENTATIONS)]
    return torch.cat(images), torch.cat(labels)


def pretrain(seed: int) -> dict[str, Any]:
    """Leave a backbone file, unless there is one of the same settings."""
    path = backbone(seed)
    return once(path, partial(_pretrained, seed, path))


def _pretrained(seed: int, path: Path) -> dict[str, Any]:
    epochs, batch, rate = PRETRAINING
    L.seed_everything(seed, verbose=False)
    labels = len(KNOWN) * ORIENTATIONS
    module = AuxiliaryTask(network(labels), num_labels=labels, labels=oriented, **settings(rate))
    data = DigitsData(held_out=NEW, image=True, batch_size=batch, val_fraction=0, test_fraction=0)
    fitted = trainer(epochs)
    fitted.fit(module, datamodule=data)
    module.export_backbone(path)
    return {"loss": float(fitted.callback_metrics["train/loss_epoch"])}


def backbone(seed: int) -> Path:
    """Its path says how it is made."""
    said = "-".join(f"{value:g}" for value in (seed, *PRETRAINING))
    return folder_of("digits") / f"digits-{said}.safetensors"


def train(arm: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """Train one arm, and give its error in percent."""
    began = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    module = classifier(network(len(NEW)), rate)
    callbacks: list[L.Callback] = []
    if arm != SCRATCH:
        pretrain(seed)  # done, unless its file was lost since
        groups = len(depth_groups(module))
        steps = EPOCHS * LABELS * len(NEW) // BATCH
        callbacks = [PretrainFirst(weights=str(backbone(seed))), PLANS[arm](steps, groups)]
    data = FewDigits(seed)
    fitted = trainer(EPOCHS, callbacks)
    fitted.fit(module, datamodule=data)
    loaders = {"val": data.val_dataloader, "test": data.test_dataloader}
    found = error(fitted, module, loaders[part]())
    reason = str(getattr(callbacks[-1], "reason", "")) if callbacks else ""
    return {"error": found, "seconds": time.perf_counter() - began, "reason": reason}


def measure(run: Run) -> dict[str, Any]:
    """Pretrain, tune and compare."""
    seeds = [*TUNING_SEEDS, *range(run.seeds)]
    run.all({f"pretrain seed {seed}": Job(pretrain, {"seed": seed}) for seed in seeds})
    arms = dict.fromkeys([SCRATCH, *PLANS], RATES)
    return compare(run, train, arms=arms, cases={"": {}}) | {"bound": BOUND}


def table(result: dict[str, Any]) -> str:
    """The arms, and what was asked of them."""
    errors = {arm: flat(found) for arm, found in result["errors"].items()}
    mean = {arm: statistics.fmean(values) for arm, values in errors.items()}
    best = min(PLANS, key=lambda plan: mean[plan])
    share = mean[best] / mean[SCRATCH]
    lines = [
        table_of(result),
        "",
        f"Best plan: {best}, {share:.0%} of the error from scratch "
        f"(asked: at most {BOUND:.0%}; {_met(share <= BOUND)}).",
    ]
    for other in (FULL, HEAD):
        behind = differences(errors[GRADUAL], errors[other])
        met = _met(behind.mean <= 0 or behind.low <= 0)
        lines.append(f"Gradual less {other}: {behind} points (asked: not worse; {met}).")
    behind = differences(errors[AUTO], errors[best])
    met = _met(behind.mean <= AUTO_BOUND)
    lines.append(f"Auto less {best}: {behind} points (asked: at most {AUTO_BOUND:g}; {met}).")
    return "\n".join(lines)


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"
