"""Two processes: how far their weights are apart after each opening of a group.

The network is torchvision's ResNet-18 on digits of 32 pixels. Every process has its own half of
the rows; DDP averages what it knows to be trained. ``BackboneFinetuning`` opens the backbone as a
whole after the first epoch, for an optimizer that filters by ``requires_grad``, as its
documentation asks. Compared are parameters: buffers of batch norm are each process's own.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks.freeze import UnfreezeGradually
from tests.benchmarks.record import Job, Run, prepare
from tests.processes import WORLD, reports_of

TITLE = "Two processes with DDP (gloo): the largest difference between their weights"
NEEDS_ROOT = False

OURS, THEIRS = "UnfreezeGradually", "BackboneFinetuning"

#: From input to output; one more is open in each epoch.
GROUPS = [
    ["backbone.0", "backbone.1"],
    *("backbone.4", "backbone.5", "backbone.6", "backbone.7"),
    "head",
]
EPOCHS, BATCH, BATCHES = len(GROUPS) + 1, 8, 2


class Classifier(L.LightningModule):
    """ResNet-18 in the two parts that Lightning's callback asks for."""

    def __init__(self, *, filtered: bool) -> None:
        super().__init__()
        network = torchvision.models.resnet18(num_classes=10)
        self.backbone = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
        self.head = network.fc
        self.filtered = filtered

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad or not self.filtered]
        return torch.optim.SGD(trained, lr=0.02, momentum=0.9)

    def train_dataloader(self) -> Any:
        from sklearn.datasets import load_digits

        digits = load_digits()
        rows = BATCH * BATCHES
        chosen = torch.randperm(len(digits.target))[self.global_rank * rows :][:rows]
        images = torch.tensor(digits.images, dtype=torch.float32)[chosen, None] / 16
        images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1)
        target = torch.tensor(digits.target)[chosen]
        return DataLoader(TensorDataset(images, target), batch_size=BATCH)


class Differences(L.Callback):
    """After the last step of every epoch: what drifts apart does not come together again."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        flat = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        both = [torch.zeros_like(flat) for _ in range(WORLD)]
        torch.distributed.all_gather(both, flat)
        self.found.append(float((both[0] - both[1]).abs().max()))


def _callback(arm: str) -> L.Callback:
    if arm == OURS:
        return UnfreezeGradually(groups=GROUPS)
    return BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.002)


def _on_rank(rank: int, *, arm: str, seed: int) -> list[float]:
    prepare()
    torch.manual_seed(seed)  # the same rows are shared out, and the same weights drawn
    watch = Differences()
    L.Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp",
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[_callback(arm), watch],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Classifier(filtered=arm == THEIRS))
    return watch.found


def work(*, arm: str, seed: int) -> list[float]:
    """The largest difference after each epoch of one training."""
    with tempfile.TemporaryDirectory() as folder:
        found: list[list[float]] = reports_of(partial(_on_rank, arm=arm, seed=seed), Path(folder))
    assert found[0] == found[1]
    return found[0]


def measure(run: Run) -> dict[str, Any]:
    """Both ways, every seed."""
    jobs = {
        f"{arm} {seed}": Job(work, {"arm": arm, "seed": seed})
        for seed in range(run.seeds)
        for arm in (OURS, THEIRS)
    }
    found = run.all(jobs)
    by_epoch = {
        arm: [max(found[f"{arm} {s}"][epoch] for s in range(run.seeds)) for epoch in range(EPOCHS)]
        for arm in (OURS, THEIRS)
    }
    return {"largest": by_epoch, "groups": len(GROUPS), "steps": BATCHES}


def table(result: dict[str, Any]) -> str:
    """Markdown; one row for each epoch."""
    lines = [
        f"| epoch, of {result['steps']} steps | groups open | {OURS} | backbone | {THEIRS} |",
        "|---|---|---|---|---|",
    ]
    pairs = zip(result["largest"][OURS], result["largest"][THEIRS], strict=True)
    for epoch, (ours, theirs) in enumerate(pairs):
        opened = min(epoch + 1, result["groups"])
        state = "open" if epoch else "frozen"
        lines.append(
            f"| {epoch} | {opened} of {result['groups']} | {ours:g} | {state} | {theirs:.2g} |"
        )
    return "\n".join(lines)
