"""Digits with one bad batch in sixty: without it, with it under guard, and with it alone.

Every sixtieth batch is bad, and its rows are lost to the runs that have it. The clean run has the
same batches, that one whole. ``GuardTraining`` has no arguments. The accuracy is that of the test
split after the last epoch: nothing is chosen by it.
"""

import logging
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.data import DigitsData

TITLE = "One bad batch in sixty, on digits"

EVERY = 60
EPOCHS, BATCH = 12, 32
SPIKE = 1e4

#: Largest loss of accuracy under guard, in points.
BOUND = 1.0

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=2e-3),
}

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: _mlp(nn.Identity),
    "MLP with batch norm": lambda: _mlp(lambda: nn.BatchNorm1d(128)),
}


def _mlp(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(64, 128), norm(), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(128, 128), norm(), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(128, 10),
    )


class Infinite(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


#: What a bad batch does to the inputs, and to the loss.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "inputs x 1e4": (lambda x: x * SPIKE, lambda loss: loss),
    "loss x 1e4": (lambda x: x, lambda loss: loss * SPIKE),
    "NaN in the inputs": (lambda x: x * torch.nan, lambda loss: loss),
    "infinite gradient": (lambda x: x, Infinite.apply),
}


class Training(L.LightningModule):
    """An ordinary classifier, with a schedule by steps, to which some batches are bad."""

    def __init__(self, network: nn.Module, optimizer: str, kind: str | None, steps: int) -> None:
        super().__init__()
        self.network, self.kind, self.steps = network, kind, steps
        self.optimizer = OPTIMIZERS[optimizer]
        self.right = self.seen = self.batches = 0
        self.is_bad = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.network(x), y)
        return KINDS[self.kind][1](loss) if self.kind and self.is_bad else loss

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Stand for whatever went wrong with the data before training sees them."""
        self.is_bad = self.trainer.training and self.batches % EVERY == EVERY - 1
        self.batches += self.trainer.training
        x, y = batch
        return (KINDS[self.kind][0](x), y) if self.kind and self.is_bad else batch

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.right += int((self.network(x).argmax(1) == y).sum())
        self.seen += len(y)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train(
    network: str, optimizer: str, kind: str | None, *, seed: int, guarded: bool
) -> dict[str, float]:
    """Accuracy in percent, and how many batches the guard undid."""
    torch.manual_seed(seed)
    data = DigitsData(held_out=(), batch_size=BATCH, seed=seed)
    data.prepare_data()
    data.setup("fit")
    steps = EPOCHS * len(data.train_dataloader())
    model = Training(NETWORKS[network](), optimizer, kind, steps)
    guard = GuardTraining()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=False,
            default_root_dir=folder,
            callbacks=[guard] if guarded else [],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
    found = {"accuracy": 100 * model.right / model.seen, "batches": float(steps // EVERY)}
    if guarded:
        found |= {"skipped": float(guard.skipped), "rollbacks": float(guard.rollbacks)}
    return found


def measure(seeds: int) -> dict[str, Any]:
    """Every network, optimizer and kind of bad batch, with paired seeds."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            clean = [train(network, optimizer, None, seed=s, guarded=False) for s in range(seeds)]
            for kind in KINDS:
                row = {"network": network, "optimizer": optimizer, "kind": kind, "clean": clean}
                for name, guarded in (("guarded", True), ("unguarded", False)):
                    row[name] = [
                        train(network, optimizer, kind, seed=s, guarded=guarded)
                        for s in range(seeds)
                    ]
                rows.append(row)
                print(_line(row), flush=True)
    return {"rows": rows, "largest_loss": max(map(lost, rows)), "bound": BOUND}


def lost(row: dict[str, Any]) -> float:
    """Points of mean accuracy that a guarded run loses to the clean one."""
    return mean(row["clean"], "accuracy") - mean(row["guarded"], "accuracy")


def mean(runs: list[dict[str, float]], name: str) -> float:
    """Over the seeds."""
    return statistics.fmean(run[name] for run in runs)


def table(result: dict[str, Any]) -> str:
    """Markdown; one row per network, optimizer and kind."""
    lines = [
        "| network, optimizer: bad batch | clean | guarded | unguarded | caught |",
        "|---|---|---|---|---|",
        *map(_line, result["rows"]),
        "",
        f"Largest loss of a guarded run to the clean one: {result['largest_loss']:.2f} points "
        f"(bound {result['bound']:g}).",
    ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    caught = f"{mean(row['guarded'], 'skipped'):.3g} of {mean(row['guarded'], 'batches'):.3g}"
    values = [f"{mean(row[name], 'accuracy'):.1f}" for name in ("clean", "guarded", "unguarded")]
    name = f"{row['network']}, {row['optimizer']}: {row['kind']}"
    return f"| {name} | {' | '.join(values)} | {caught} |"
