"""Two processes, and a batch of NaN on one of them: what the weights and buffers of both are then.

DDP averages gradients, so that one process's NaN is everybody's. Batch norm's buffers are each
process's own, and those of process 0 are sent to the others when the next forward begins: that is
done once more before they are compared.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stablelightning.callbacks.guard import GuardTraining
from stablelightning.data import DigitsData

TITLE = "NaN on one process of two"

STEPS, EVERY, BAD_RANK = 60, 20, 1


class Training(L.LightningModule):
    """A classifier with batch norm, which gets NaN on one process now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if self.global_rank == BAD_RANK and batch_idx % EVERY == EVERY - 1:
            x = x * torch.nan
        return F.cross_entropy(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Keep(L.Callback):
    """Leaves each process's weights in a file."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        warnings.filterwarnings("ignore")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.model._sync_buffers()  # type: ignore[union-attr, operator]
        guards = [c for c in trainer.callbacks if isinstance(c, GuardTraining)]
        skipped = guards[0].skipped if guards else 0
        kept = {"weights": pl_module.state_dict(), "skipped": skipped}
        torch.save(kept, self.folder / f"{trainer.global_rank}.pt")


def train(seed: int, *, guarded: bool) -> dict[str, Any]:
    """What both processes hold after training."""
    torch.manual_seed(seed)
    data = DigitsData(held_out=(), seed=seed)
    data.prepare_data()
    data.setup("fit")
    inputs, target = zip(*data.part("train"), strict=True)
    rows = torch.arange(STEPS * 2 * 16) % len(target)
    loader = DataLoader(
        TensorDataset(torch.stack(inputs)[rows], torch.stack(target)[rows]), batch_size=16
    )
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp_spawn",
            max_epochs=1,
            logger=False,
            default_root_dir=folder,
            callbacks=[Keep(folder), *([GuardTraining()] if guarded else [])],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Training(), loader)
        one, other = (torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1))
    pairs = [(one["weights"][name], other["weights"][name]) for name in one["weights"]]
    return {
        "finite": all(bool(t.isfinite().all()) for pair in pairs for t in pair),
        "equal": all(torch.equal(*pair) for pair in pairs),
        "skipped": [one["skipped"], other["skipped"]],
    }


def measure(seeds: int) -> dict[str, Any]:
    """With and without the guard, from the same weights and on the same batches."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ways = {"guarded": True, "unguarded": False}
    runs = {way: [train(s, guarded=g) for s in range(seeds)] for way, g in ways.items()}
    return {"runs": runs, "steps": STEPS, "bad": STEPS // EVERY}


def table(result: dict[str, Any]) -> str:
    """Markdown; one row for each way."""
    lines = [
        f"| {result['bad']} of {result['steps']} batches NaN on one process | finite on both | "
        "equal on both | skipped |",
        "|---|---|---|---|",
    ]
    for way, runs in result["runs"].items():
        finite, equal = (sum(run[name] for run in runs) for name in ("finite", "equal"))
        skipped = sorted({number for run in runs for number in run["skipped"]})
        words = "to ".join(f"{number} " for number in dict.fromkeys([skipped[0], skipped[-1]]))
        cells = [way, f"{finite} of {len(runs)}", f"{equal} of {len(runs)}", words.strip()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
