"""Two classes with 100 images each, for a network that knows the other eight.

Three pairs of neighbours in the order of the names, whose nearest kin is left out with them, and
two pairs five places apart, a vehicle and an animal each, which were added once the former had been
seen to be hard. Rates are tuned for each pair, on its validation images. One network of each pair
serves all seeds: what differs between seeds is which 100 images of a class there are, the head's
weights and the order of the batches.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from stablelightning.callbacks.pretrain import PretrainFirst
from stablelightning.model.backbone_file import save_backbone
from stablelightning.model.depth import depth_groups
from stablelightning.model.head import remove_head
from tests.benchmarks.cifar import CifarData, folder_of, images
from tests.benchmarks.paired import differences, interval
from tests.benchmarks.record import Job, Run
from tests.benchmarks.transfer.arms import TUNING_SEEDS, compare, cut, flat
from tests.benchmarks.transfer.plans import FULL, PLANS, SCRATCH
from tests.benchmarks.transfer.training import (
    classifier,
    colour_network,
    error,
    large_classifier,
    once,
    trainer,
)

TITLE = "Two classes with 100 images each, after the eight others"
NEEDS_ROOT = True

CLASSES = 10
PAIRS = ((2, 3), (6, 7), (0, 1), (0, 5), (1, 6))

#: Training images of each of the two classes.
LABELS = 100

#: Share of scratch's error that is asked to go.
BOUND = 0.4

#: Of the pretraining: epochs, images of a batch, learning rate.
PRETRAINING = (12, 128, 0.2)

#: Passes over the labelled images, in epochs of ten passes.
EPOCHS, COPIES, BATCH = 5, 10, 40

#: To be tried; of full fine-tuning it is the head's, ten times that of the rest.
ARMS = {SCRATCH: (5e-4, 1e-3, 3e-3), FULL: (3e-3, 1e-2, 3e-2)}


def others(pair: Sequence[int]) -> list[int]:
    return [number for number in range(CLASSES) if number not in pair]


def pretrain(root: str, pair: Sequence[int]) -> dict[str, Any]:
    """Leave a backbone file of the eight other classes, unless there is one of these settings."""
    path = backbone(root, pair)
    return once(path, partial(_pretrained, root, pair, path))


def _pretrained(root: str, pair: Sequence[int], path: Path) -> dict[str, Any]:
    epochs, batch, rate = PRETRAINING
    L.seed_everything(0, verbose=False)
    network = colour_network(CLASSES - len(pair))
    module = large_classifier(network, rate)
    data = CifarData(root, others(pair), batch_size=batch)
    fitted = trainer(epochs, half=True)
    fitted.fit(module, datamodule=data)
    found = error(fitted, module, data.loader("val"))
    _, head = remove_head(network)
    save_backbone(network, path, head=head)
    return {"validation error": found}


def backbone(root: str, pair: Sequence[int]) -> Path:
    """Its path says how it is made."""
    said = "-".join(f"{value:g}" for value in (*pair, *PRETRAINING))
    return folder_of(root) / f"pair-{said}.safetensors"


def train(
    root: str, pair: Sequence[int], arm: str, rate: float, seed: int, part: str
) -> dict[str, Any]:
    """Train one arm on a pair, and give its error in percent."""
    began = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    network = colour_network(len(pair))
    module = classifier(network, rate)
    callbacks: list[L.Callback] = []
    if arm != SCRATCH:
        pretrain(root, pair)  # done, unless its file was lost since
        steps = EPOCHS * COPIES * LABELS * len(pair) // BATCH
        plan = PLANS[arm](steps, len(depth_groups(module)))
        callbacks = [PretrainFirst(weights=str(backbone(root, pair))), plan]
    data = CifarData(root, pair, per_class=LABELS, seed=seed, batch_size=BATCH, copies=COPIES)
    fitted = trainer(EPOCHS, callbacks, half=True)
    fitted.fit(module, datamodule=data)
    found = error(fitted, module, data.loader(part))
    return {"error": found, "seconds": time.perf_counter() - began}


def measure(run: Run) -> dict[str, Any]:
    """Pretrain, tune and compare."""
    root = str(run.root)
    names = images(root).names
    cases = {f"{names[a]}, {names[b]}": {"root": root, "pair": [a, b]} for a, b in PAIRS}
    jobs = {f"pretrain without {name}": Job(pretrain, case) for name, case in cases.items()}
    made = run.all(jobs)
    found = {
        name: compare(run, train, arms=ARMS, cases={name: case}, tuning_seeds=TUNING_SEEDS[:1])
        for name, case in cases.items()
    }
    return {
        "rates": {arm: {name: own["rates"][arm] for name, own in found.items()} for arm in ARMS},
        "validation": {name: own["validation"] for name, own in found.items()},
        "errors": {arm: {n: own["errors"][arm][n] for n, own in found.items()} for arm in ARMS},
        "pretraining": made,
        "bound": BOUND,
    }


def table(result: dict[str, Any]) -> str:
    """Pair by pair and all together, and whether enough of the error is gone."""
    scratch, full = (result["errors"][arm] for arm in (SCRATCH, FULL))
    lines = [
        "| pair | from scratch: test error, % | pretrained, % | less, points | error cut by |",
        "|---|---|---|---|---|",
        *(_line(name, scratch[name], full[name]) for name in scratch),
        _line("all", flat(scratch), flat(full)),
    ]
    gone = cut(full, scratch)
    least = interval([cut({"": full[name]}, {"": scratch[name]}) for name in scratch])
    verdict = "met" if gone >= BOUND else "missed"
    lines += [
        "",
        f"Error cut by {gone:.0%} (asked: {BOUND:.0%}; {verdict}); "
        f"mean of the pairs {least.mean:.0%} [{least.low:.0%}, {least.high:.0%}].",
    ]
    return "\n".join(lines)


def _line(name: str, scratch: Sequence[float], full: Sequence[float]) -> str:
    gone = 1 - sum(full) / sum(scratch)
    less = differences(scratch, full)
    return f"| {name} | {interval(scratch)} | {interval(full)} | {less} | {gone:.0%} |"
